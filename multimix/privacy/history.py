"""What a ledger's entries have cost: the mechanisms to be priced, and what no price can be given for.

Every reservation counts in full, whether its answer left the site or not, and whoever drew its noise. Non-private
training has no mechanism: ask `non_private`, and print infinity. Noise from a known seed protects nobody: ask
`seeded` before a price is called a guarantee.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from multimix.privacy.accountant import Mechanism
from multimix.privacy.entries import Entry, Evaluation, NonPrivate, Refusal, Reservation

_Kind = TypeVar("_Kind", Reservation, NonPrivate, Evaluation, Refusal)


def history_of(entries: Iterable[Entry], job_id: str | None = None) -> dict[Mechanism, int]:
    """Return the steps of each mechanism over all reservations, or over one run's; in the order of first use."""
    steps: Counter[Mechanism] = Counter()
    for reservation in reservations(entries, job_id):
        steps[mechanism_of(reservation)] += reservation.steps
    return dict(steps)


def mechanism_of(reservation: Reservation) -> Mechanism:
    """Return the mechanism of each of a reservation's steps."""
    return Mechanism(noise_multiplier=reservation.dp.noise_multiplier, sampling_rate=reservation.dp.sampling_rate)


def reservations(entries: Iterable[Entry], job_id: str | None = None) -> tuple[Reservation, ...]:
    """Return all reservations, or one run's, committed or not."""
    return tuple(_of(Reservation, entries, job_id))


def non_private(entries: Iterable[Entry], job_id: str | None = None) -> bool:
    """Whether anything, or this run, was ever trained without privacy: epsilon is infinite."""
    return any(_of(NonPrivate, entries, job_id))


def seeded(entries: Iterable[Entry], job_id: str | None = None) -> bool:
    """Whether any reservation, or one of this run's, drew its noise from a known seed: a simulation, not private."""
    return any(reservation.seeded for reservation in reservations(entries, job_id))


def spent_runs(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Return the runs that spent of these patients' privacy, with or without noise, in the order of first spending."""
    bodies = (entry.body for entry in entries)
    return tuple(dict.fromkeys(body.binding.job_id for body in bodies if isinstance(body, Reservation | NonPrivate)))


def _of(kind: type[_Kind], entries: Iterable[Entry], job_id: str | None) -> Iterator[_Kind]:
    for entry in entries:
        body = entry.body
        if isinstance(body, kind) and job_id in (None, job_of(body)):
            yield body


def job_of(body: Reservation | NonPrivate | Evaluation | Refusal) -> str:
    """Return the run that an entry belongs to."""
    return body.job_id if isinstance(body, Refusal) else body.binding.job_id
