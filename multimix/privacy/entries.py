"""What a ledger remembers: frozen entries that say what happened. `multimix.privacy.accountant` prices them.

Nothing here names a patient, a path or a person. Every entry is bound to its place: number, time, and the head of the
ledger before it.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from multimix.config import Frozen
from multimix.contract.messages import Name, Short
from multimix.contract.privacy import Base64, Finite, Length, PatientPrivacy, Sha256

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=500)]


class Binding(Frozen):
    """What an answer is bound to: two orders that differ in any of these are different."""

    job_id: Name
    round: int
    plan_sha256: Sha256
    weights_sha256: Sha256  # of the weights received
    data_fingerprint: Short  # of the generation of the store


class Genesis(Frozen):
    """The first entry: whose ledger this is."""

    kind: Literal["genesis"] = "genesis"
    site: Name
    population: Name
    public_key: Base64


class Reservation(Frozen):
    """Budget spent before a pixel is read. It stays spent, whether an answer left the site or not."""

    kind: Literal["reservation"] = "reservation"
    binding: Binding
    commitment: Sha256  # SHA-256 of the secret behind noise and sampling
    seeded: bool = False  # a simulation drew the secret from a known seed: no privacy
    dp: PatientPrivacy
    steps: Annotated[int, Field(ge=1)]
    total_steps: Annotated[int, Field(ge=1)]  # of the run, as planned
    epsilon_run: Finite  # of this job with this round, at delta: the larger of both accountants
    epsilon_lifetime: Finite | None  # of the population with this round; None is infinity
    epsilon_private: Finite  # the same over the private entries only
    prv: Finite  # the two accountants, of the private lifetime
    pld: Finite
    limit_run: Positive
    limit_lifetime: Positive
    delta: Positive  # of the population; the prices are at it
    code: Short  # version of the software
    method_sha256: Sha256  # of the method's configuration


class Commit(Frozen):
    """The reply of a reservation is on disk; from here on these bytes and no others may leave."""

    kind: Literal["commit"] = "commit"
    reservation: Length  # sequence number of the reservation
    reply_sha256: Sha256


class NonPrivate(Frozen):
    """Training without differential privacy: epsilon is infinite from here on."""

    kind: Literal["non_private"] = "non_private"
    binding: Binding
    steps: Annotated[int, Field(ge=1)]


class Evaluation(Frozen):
    """Exact figures over patients that were held back from training left the site."""

    kind: Literal["evaluation"] = "evaluation"
    binding: Binding
    split: Literal["validation", "test"]
    minimum_cohort: int


class Refusal(Frozen):
    """A signed plan that was refused, and why; the same refusal is written once."""

    kind: Literal["refusal"] = "refusal"
    job_id: Name
    round: int
    plan_sha256: Sha256
    reason: Name


OfficerAction = Literal["allow_non_private", "private_after_non_private", "note", "secrets_purged"]


class Officer(Frozen):
    """A decision of the privacy officer, signed with the officer's own key."""

    kind: Literal["officer"] = "officer"
    action: OfficerAction
    text: Text = ""
    officer_key: Base64  # public, Ed25519
    signature: Base64  # over `officer_text`


class Tuning(Frozen):
    """Runs declared as a search for hyper-parameters, beside what their own reservations say."""

    kind: Literal["tuning"] = "tuning"
    runs: Annotated[int, Field(ge=1)]
    private: bool  # on these patients with DP (each run has reservations), or on other, public data
    text: Text = ""


Body = Annotated[
    Genesis | Reservation | Commit | NonPrivate | Evaluation | Refusal | Officer | Tuning, Field(discriminator="kind")
]


class Entry(Frozen):
    """One line of a ledger."""

    sequence: Length  # 0 for the genesis
    previous: Sha256  # head of the ledger before this entry
    time: AwareDatetime
    body: Body


def officer_text(site: str, population: str, head: str, action: OfficerAction, text: str) -> str:
    """What an officer signs: the decision, for this population, at this point of its ledger."""
    return f"multimix officer\n{site}\n{population}\n{head}\n{action}\n{text}"
