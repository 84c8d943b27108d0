"""What a replayed round shows: which rounds can be replayed, how far two releases lie apart, and the verdict.

A round is fixed by the order, the weights received, the generation of the images and the secret that the ledger
committed to before a pixel was read. Whoever has all four computes the release again. A trainer that added less noise,
clipped otherwise, sampled at another rate or released something else did not compute this release.

What a difference means. On the same machine an honest release is reproduced bit for bit. Between processors sums are
rounded in another order, and Adam (arXiv 1412.6980), which divides by a gradient's own size, amplifies that where a
gradient is near zero: hence a tolerance. Measured with a network of 1.2 million parameters, noise multiplier 2 and 4
patients a step, other kernels on the same processor moved a release by 2e-7 of its update in 2 steps and 5e-6 in 20.

Adam also forgets the scale of what it is given: where noise is far above the signal, a trainer with half the noise
comes to almost the same weights, as near as the signal is small beside the noise. In the case above that trainer lay
1.5e-2 away in 2 steps and 6e-3 in 20, one without noise 1.4; one that used fewer images of a patient only 2e-4. So give
a tolerance of 0 on the machine that trained, look at the difference itself, and take the direct test of the noise
beside this. What an update carries below the tolerance, nobody sees.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from multimix.contract.messages import Weights
from multimix.errors import InputError
from multimix.privacy.entries import Commit, Entry, Reservation

TOLERANCE: Final = 1e-4  # of the update's norm; other kernels of the same processor gave 5e-6 after 20 steps
MOST_TOLERANCE: Final = 0.1  # beyond it a comparison says nothing
NOT_REPLAYABLE: Final = frozenset(
    {
        "non_private",  # no secret fixes such a round
        "not_committed",  # the ledger knows of no reply
        "order_missing",
        "plan_malformed",  # by another version of the software, whose plan this one cannot read
        "secret_missing",
        "generation_gone",  # a patient in it was purged, or it was replaced
        "reply_purged",
        "replay_failed",  # an error here: memory, disk, another machine
    }
)

Verdict = Literal["reproduced", "differs", "not_replayable"]


@dataclass(frozen=True)
class Replayed:
    """One round, executed again. `difference` is relative to the update's norm; None where it was not computed.

    `reasons` are codes: none of a round that was reproduced, and every one that is not in `NOT_REPLAYABLE` makes the
    verdict `differs`. `code_then` is what the trainer said of itself, "" where it said nothing.
    """

    sequence: int  # of the ledger's entry
    job_id: str
    round: int
    verdict: Verdict
    reasons: tuple[str, ...]
    difference: float | None
    tolerance: float
    largest: str | None  # the array that differs most; None where none does
    code_then: str
    code_now: str
    seconds: float


@dataclass(frozen=True)
class Compared:
    """How far two releases lie apart."""

    reason: str = ""  # "" within the tolerance, else `arrays_differ`, `weights_not_finite`, `weights_differ`
    difference: float | None = None
    largest: str | None = None


def replayable(entries: Iterable[Entry]) -> tuple[int, ...]:
    """Return the sequence numbers of the private rounds whose reply was committed, in their order."""
    listed = tuple(entries)
    reserved = {entry.sequence for entry in listed if isinstance(entry.body, Reservation)}
    committed = {entry.body.reservation for entry in listed if isinstance(entry.body, Commit)}
    return tuple(sorted(reserved & committed))


def verdict_of(reasons: Iterable[str]) -> Verdict:
    """Judge: anything that is wrong weighs more than anything that is missing."""
    found = set(reasons)
    if found - NOT_REPLAYABLE:
        return "differs"
    return "not_replayable" if found else "reproduced"


def checked_tolerance(tolerance: float) -> float:
    """Return it; InputError `tolerance` unless it is from 0 to 0.1."""
    if not 0 <= tolerance <= MOST_TOLERANCE:  # also of NaN
        raise InputError("tolerance", f"tolerance = {tolerance:g}: give 0 (the same machine) to {MOST_TOLERANCE:g}.")
    return tolerance


def compare(received: Weights, released: Weights, recomputed: Weights, *, tolerance: float) -> Compared:
    """Compare arrays by ||recomputed - released|| / ||released - received||, L2 over all arrays sent, in float64.

    Where the release equals the weights received the ratio has no value: then only an equal one is within tolerance.
    """
    if _forms(released) != _forms(recomputed):
        return Compared("arrays_differ")
    if not all(np.isfinite(array).all() for some in (released, recomputed) for array in some.values()):
        return Compared("weights_not_finite")
    apart = _norms(recomputed, released)
    distance, update = math.hypot(*apart.values()), math.hypot(*_norms(released, received).values())
    if not distance:
        return Compared(difference=0.0)
    largest = max(apart, key=lambda name: apart[name])
    if not update:
        return Compared("weights_differ", largest=largest)
    difference = distance / update
    return Compared("" if difference <= tolerance else "weights_differ", difference, largest)


def _forms(weights: Weights) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (array.dtype.str, array.shape) for name, array in weights.items()}


def _norms(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.linalg.norm(one[name].astype(np.float64) - other[name])) for name in one}
