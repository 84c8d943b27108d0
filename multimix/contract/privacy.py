"""Privacy in the contract: what a plan asks of a site, and how a site's ledger is shown without being opened.

A ledger's head is the hash over all of its entries. The server countersigns heads and keeps them; with the next order
the site gets the last one back, and with its answer it proves that its ledger has grown from there: a ledger that
was cut, swapped or restored from a backup cannot give that proof.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from multimix.config import Frozen

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{1,200}={0,2}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Length = Annotated[int, Field(ge=0, le=1_000_000_000)]
ModuleName = Literal["encoder", "classifier", "decoder"]
MECHANISM = "poisson_subsampled_gaussian"
EMPTY_HEAD = "0" * 64  # of a ledger without entries


class PatientPrivacy(Frozen):
    """How a site must train so that its answer is differentially private for each of its patients.

    Bounds are the hospital's policy's, which refuses with a reason of its own; this only carries the numbers.
    """

    mechanism: Annotated[str, Field(max_length=64)] = MECHANISM
    noise_multiplier: Finite  # sigma: standard deviation of the noise of a step, in units of the clip norm
    clip_norm: Finite  # C: of a patient's summed gradient over images, views and tasks
    sampling_rate: Finite  # q: each patient is in a step with this probability, independently
    declared_patients: int  # N: public; the divisor of the step is q N
    images_per_patient: int  # at most so many of a patient's images are used in a step
    delta: Finite
    modules: tuple[ModuleName, ...]  # trained, noised and sent; the others are frozen
    parameters: Literal["all", "affine"] = "all"  # of those modules: all, or normalisation and output layers only
    module_weights: dict[ModuleName, Annotated[float, Field(ge=0, allow_inf_nan=False)]]  # of this site in the average
    rounds: int  # of the whole run, fixed before it starts
    epsilon: Finite  # what the whole run shall cost each patient at most, at delta


class LedgerHead(Frozen):
    """How many entries a ledger has, and the hash over them all."""

    length: Length = 0
    sha256: Sha256 = EMPTY_HEAD


class Extension(Frozen):
    """Proof that a ledger has grown from one head to another: the digests of the entries between."""

    public_key: Base64  # of the ledger, Ed25519
    since: LedgerHead
    digests: Annotated[tuple[Sha256, ...], Field(max_length=100_000)]
    head: LedgerHead

    def holds(self) -> bool:
        """Whether the digests lead from `since` to `head`."""
        return (
            self.head.length == self.since.length + len(self.digests)
            and chained(self.since.sha256, self.digests) == self.head.sha256
        )


class Countersignature(Frozen):
    """The coordinator's word that it has seen this head of this site's ledger."""

    site: Annotated[str, Field(max_length=64)]
    public_key: Base64  # of the ledger
    head: LedgerHead
    signature: Base64  # Ed25519 of the coordinator over the rest

    def text(self) -> str:
        """What is signed."""
        return f"multimix ledger head\n{self.site}\n{self.public_key}\n{self.head.length}\n{self.head.sha256}"

    def by(self, key: Ed25519PublicKey) -> bool:
        """Whether the coordinator with this key signed it."""
        try:
            key.verify(base64.b64decode(self.signature), self.text().encode())
        except (InvalidSignature, ValueError):
            return False
        return True


def countersign(site: str, extension: Extension, key: Ed25519PrivateKey) -> Countersignature:
    """Sign the head that a site has proved."""
    unsigned = Countersignature(site=site, public_key=extension.public_key, head=extension.head, signature="AA==")
    signature = base64.b64encode(key.sign(unsigned.text().encode())).decode()
    return unsigned.model_copy(update={"signature": signature})


def chained(head: str, digests: Iterable[str]) -> str:
    """Return the hash of a ledger after further entries, by their digests."""
    for digest in digests:
        head = hashlib.sha256((head + digest).encode()).hexdigest()
    return head
