"""What a DP statement holds: frozen records that go to JSON and back.

An epsilon that no noise stands behind is the word "infinity", never blank.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from multimix.config import Frozen
from multimix.contract.privacy import Base64, Countersignature, LedgerHead, ModuleName
from multimix.privacy.entries import Entry

Infinity = Literal["infinity"]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Infinity
NoticeKind = Literal[
    "simulation", "non_private", "disagreement", "over_limit", "delta_too_large", "uncommitted", "evaluations"
]


class Notice(Frozen):
    """Something a reader must not miss."""

    kind: NoticeKind
    text: str


class Terms(Frozen):
    """What is claimed, in words: of whom, towards whom, over what."""

    setting: str
    unit: str
    adjacency: str
    trust_model: str
    accesses: str
    output: str
    mechanism: str
    sampler: str
    accounting: str
    reservations: str


class Account(Frozen):
    """What a run or a lifetime has cost each patient, at delta."""

    epsilon: Epsilon  # the claim: the worst case over everything
    epsilon_private: Epsilon  # of the reservations alone, were their noise secret: the larger of the accountants
    prv: Epsilon
    pld: Epsilon
    difference: float  # between the accountants
    delta: float
    limit: float
    reservations: int
    uncommitted: int  # of them: no answer is known to have left, and all the same spent
    seeded: int  # of them: noise from a known seed
    steps: int
    non_private_trainings: int
    non_private_steps: int


class RunAccount(Frozen):
    """One run's account and when it spent."""

    job_id: str
    first: AwareDatetime
    last: AwareDatetime
    rounds: int
    account: Account


class Use(Frozen):
    """Steps of one mechanism."""

    noise_multiplier: float  # sigma
    clip_norm: float  # C
    sampling_rate: float  # q
    declared_patients: int
    images_per_patient: int
    modules: tuple[ModuleName, ...]
    parameters: Literal["all", "affine"]
    steps: int


class Provenance(Frozen):
    """Which data, software and settings: each value that occurs, in the order of first use."""

    data_fingerprints: tuple[str, ...]
    random_generators: tuple[str, ...]
    code: tuple[str, ...]
    method_sha256: tuple[str, ...]
    plan_sha256: tuple[str, ...]


class LedgerFacts(Frozen):
    """Where the ledger stands, and who has seen it there."""

    public_key: Base64
    head: LedgerHead
    countersignature: Countersignature | None
    coordinator_key: Base64 | None  # Ed25519; None: the countersignature could not be checked
    entries_since: int | None  # entries that the coordinator has not seen; None: it has seen none


class Statement(Frozen):
    """One page about what left a site; entries are shown as they stand in the ledger."""

    format: Literal["multimix DP statement 1"] = "multimix DP statement 1"
    scope: Literal["lifetime", "run"]
    job_id: str | None
    site: str
    population: str
    as_of: AwareDatetime  # of the last entry
    notices: tuple[Notice, ...]
    terms: Terms
    declared_patients: int
    images_per_patient: int
    delta: float
    delta_reason: str
    lifetime: Account
    run: Account | None
    runs: tuple[RunAccount, ...]  # of a run's statement: that run
    forecast_rounds: int | None
    uses: tuple[Use, ...]
    accountant_versions: dict[str, str]
    released: tuple[str, ...]
    not_covered: tuple[str, ...]
    provenance: Provenance
    refusals: tuple[Entry, ...]
    evaluations: tuple[Entry, ...]
    officer: tuple[Entry, ...]  # of the population, whatever the scope
    tuning: tuple[Entry, ...]
    ledger: LedgerFacts
