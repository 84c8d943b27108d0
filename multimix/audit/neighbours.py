"""Neighbouring data: does one patient move the released sum by more than the clip norm, or move what others add?

One step is taken three times with the same secret: with some patients, without one of them, and with that one alone.
The noise of equal draws cancels in the differences, so nothing is estimated:

* sensitivity: |with - without|, in units of the clip norm, must be 1 at most;
* leakage: |with - without - alone + nobody| must be 0: all others add the same whether the patient is there or not. It
  is looked at twice, also with a clip norm so large that clipping cannot hide what only scales gradients.

A clipping bound that is broken shows in the first, and whatever carries anything from one patient to the next shows in
the second: batch normalisation, saliency or pseudo-labels computed over patients, a gradient of the whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from multimix.audit.observation import Subject, audit_secret, restricted
from multimix.batches import TrainingData
from multimix.errors import Refused
from multimix.privacy.training import Population, taught_pools

_LOOSE: Final = 1e4  # times the clip norm: the noise of 1e4 clip norms still cancels to 1e-11
TOLERANCE: Final = 1e-6  # of the clip norm: far above float64's rounding of the sum, far below any patient

Rows = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Neighbours:
    """What removing one patient did."""

    patients: int  # in the step, each removed in turn
    sensitivity: float  # the largest, in units of the clip norm
    leakage: float  # the same
    flagged: bool


def compare_neighbours(
    subject: Subject, *, patients: int, seed: int, progress: Callable[[int], None] | None = None
) -> Neighbours:
    """Remove each of some patients of one step in turn; everybody is taken into the step.

    Args:
        subject: What is audited. The step is the run's last, where all terms of the loss have their full weight.
        patients: How many take part, by lot, with as many images as a step takes of one.
        seed: Of the lot and of the audit's secret.
        progress: Told how many patients were removed.

    Raises:
        Refused: `audit_patients` where fewer than two patients train here; as the trainer.
    """
    taught = replace(subject.data, pools=taught_pools(subject.data.pools, subject.dp.modules))
    rows = _rows_of(taught, patients, subject.dp.images_per_patient, seed)
    if len(rows) < 2:  # noqa: PLR2004
        raise Refused("audit_patients", "fewer than two patients train here")

    clipped, loose = _Steps(subject, rows, seed), _Steps(_hardly_clipping(subject), rows, seed)
    sensitivity = leakage = 0.0
    for number in range(len(rows)):
        moved, rest = clipped.without(number)
        _moved, rest_of_loose = loose.without(number)
        sensitivity = _worse(sensitivity, moved)
        leakage = _worse(_worse(leakage, rest), rest_of_loose * _LOOSE)
        if progress:
            progress(number + 1)
    flagged = not (sensitivity <= 1 + TOLERANCE and leakage <= TOLERANCE)
    return Neighbours(len(rows), sensitivity, leakage, flagged)


@dataclass(frozen=True, eq=False)
class _Steps:
    """One step over some patients, and over all of them but one."""

    subject: Subject
    rows: list[Rows]
    seed: int

    @cached_property
    def together(self) -> dict[str, Array]:
        return _sum_over(self.subject, self.rows, self.seed)

    @cached_property
    def nobody(self) -> dict[str, Array]:
        return _sum_over(self.subject, [], self.seed)

    def without(self, number: int) -> tuple[float, float]:
        """Return how far removing one patient moves the sum, and how far it moves what the others add."""
        others = _sum_over(self.subject, [*self.rows[:number], *self.rows[number + 1 :]], self.seed)
        alone = _sum_over(self.subject, [self.rows[number]], self.seed)
        moved = {name: value - others[name] for name, value in self.together.items()}
        return _norm(moved), _norm({name: moved[name] - alone[name] + self.nobody[name] for name in moved})


def _hardly_clipping(subject: Subject) -> Subject:
    """Return the subject with so large a clip norm that what only rescales gradients shows; noise grows with it."""
    return replace(subject, dp=subject.dp.model_copy(update={"clip_norm": _LOOSE * subject.dp.clip_norm}))


def _sum_over(subject: Subject, taken: list[Rows], seed: int) -> dict[str, Array]:
    rows = np.concatenate([*taken, np.empty(0, dtype=np.int64)])
    return _sum_of_a_step(replace(subject, data=restricted(subject.data, rows)), audit_secret(seed))


def _rows_of(data: TrainingData, patients: int, images: int, seed: int) -> list[Rows]:
    """Return the rows of some patients by lot, each cut to what a step takes of one patient."""
    population = Population.of(data)
    lot = np.random.default_rng([seed, 2]).permutation(population.count)[:patients]
    return [population.rows[population.patient == patient][:images] for patient in np.sort(lot)]


def _sum_of_a_step(subject: Subject, secret: bytes) -> dict[str, Array]:
    """Return the noised sum of the run's last step over everybody, in units of the clip norm, by parameter."""
    seen: list[dict[str, Array]] = []
    everybody = subject.dp.model_copy(update={"sampling_rate": 1.0})
    unit = subject.unit(everybody)
    subject.train(
        subject.network(),
        subject.data,
        subject.method,
        subject.work(first_step=subject.steps - 1, steps=1),
        everybody,
        secret=secret,
        watch=lambda _index, noised: seen.append(
            {name: value.detach().cpu().double().numpy() * unit for name, value in noised.items()}
        ),
    )
    if len(seen) != 1:
        raise Refused("audit_not_watched")
    return seen[0]


def _norm(values: dict[str, Array]) -> float:
    """L2 norm over all parameters; not a number where one of them is not."""
    return float(np.sqrt(sum(float(np.sum(value**2)) for value in values.values())))


def _worse(known: float, found: float) -> float:
    """Return the larger, and what is not a number rather than forget it."""
    return float(np.fmax(known, found)) if np.isfinite(found) and np.isfinite(known) else float("nan")
