"""The empirical audit: one run of the real training with planted canaries, and what it proves about the trainer.

Three looks at one trainer. The one-run bounds say how much privacy it spends at least, the direct tests whether it does
what it claims, the comparison of neighbours whether patients stay apart. Each gets its share of one false-alarm rate;
the comparison estimates nothing and has no false alarms.

An audit that flags nothing proves no epsilon: the bounds have a ceiling, and a trainer that knows an audit by its
canaries can behave while it is watched. What a round really released is shown by replaying it.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Final, Literal

from pydantic import Field

from multimix.audit.direct_tests import direct_tests, noise_tests
from multimix.audit.estimators import Estimate, LowerBound, lower_bound
from multimix.audit.neighbours import TOLERANCE, compare_neighbours
from multimix.audit.observation import Observation, Subject, observe, observe_nobody
from multimix.config import Frozen

FALSE_ALARM_RATE: Final = 1e-3  # of the whole audit
CONFIDENCE: Final = 0.95  # of the bounds that are shown; those that flag are held to the false-alarm rate
_METHODS: Final = 3
_DELTA_OF_STEINKE: Final = 1e-6  # times the canaries it has to be far below the significance

Stage = Literal["canaries", "neighbours"]
Progress = Callable[[Stage, int, int], None]  # stage, done, of how many
Number = Annotated[float, Field(allow_inf_nan=True)]


class Bound(Frozen):
    """A lower bound on epsilon, at the claim's delta; Steinke's at a smaller one, since it shows nothing at a large."""

    method: Literal["steinke", "fdp_approximate", "fdp_gaussian"]
    delta: float  # of both epsilons
    claimed_epsilon: float  # of the audited steps
    epsilon: float  # with the confidence of the audit
    ceiling: float  # what as many canaries show at most
    guesses: int
    correct: int
    flagged: bool  # above the claim, at the false-alarm rate


class Test(Frozen):
    """A direct test; see `multimix.audit.direct_tests`."""

    name: str
    measured: float
    expected: float
    z: float
    p_value: float
    count: int
    flagged: bool


class NeighbourResult(Frozen):
    """What removing a patient did; see `multimix.audit.neighbours`."""

    patients: int
    sensitivity: Number  # at most 1
    leakage: Number  # 0 but for rounding
    tolerance: float
    flagged: bool


class EmpiricalResult(Frozen):
    """An empirical audit: everything needed to repeat it, and what it found."""

    noise_multiplier: float
    sampling_rate: float
    clip_norm: float
    steps: int
    delta: float
    claimed_epsilon: float  # of these steps at delta, as the accountant prices them
    canaries: int
    included: int
    seed: int
    confidence: float
    false_alarm_rate: float
    bounds: tuple[Bound, ...]
    tests: tuple[Test, ...]
    neighbours: NeighbourResult
    code: str
    seconds: float

    @property
    def flags(self) -> tuple[str, ...]:
        """What speaks against the trainer."""
        found = [f"bound_{bound.method}" for bound in self.bounds if bound.flagged]
        found += [test.name for test in self.tests if test.flagged]
        return (*found, *(["neighbours"] if self.neighbours.flagged else []))


def audit(
    subject: Subject,
    *,
    claim: Callable[[float], float],
    delta: float,
    canaries: int,
    patients: int,
    seed: int,
    code: str,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    progress: Progress = lambda _stage, _done, _all: None,
) -> EmpiricalResult:
    """Audit a trainer with one run of it, on the CPU unless the subject's network is elsewhere.

    The CPU is where to audit: on a GPU the backward pass may add up in another order each time (atomics), and the
    comparison of neighbours flags such rounding where weights blow it up beyond its tolerance.

    Args:
        subject: The trainer, its data, and what it was told.
        claim: Epsilon of the subject's steps at a delta.
        delta: Of the claim.
        canaries: m: more of them show more.
        patients: Of the comparison of neighbours.
        seed: Of coins, lots and noise: with it the audit repeats.
        code: Version of the software audited.
        false_alarm_rate: Of the whole audit, for a correct trainer.
        progress: Told of every step and every patient.

    Raises:
        Refused: as `observe`, `observe_nobody`, `direct_tests`, `lower_bound`, `compare_neighbours`.
    """
    started = time.perf_counter()
    seen = observe(subject, canaries=canaries, seed=seed, progress=lambda n: progress("canaries", n, subject.steps))
    neighbours = compare_neighbours(
        subject, patients=patients, seed=seed, progress=lambda n: progress("neighbours", n, patients)
    )
    nobody = observe_nobody(subject, canaries=canaries, seed=seed)
    tests = (
        *direct_tests(seen, false_alarm_rate=false_alarm_rate / 2),
        *noise_tests(nobody, subject.dp.noise_multiplier, false_alarm_rate=false_alarm_rate / 2),
    )
    return EmpiricalResult(
        noise_multiplier=subject.dp.noise_multiplier,
        sampling_rate=subject.dp.sampling_rate,
        clip_norm=subject.dp.clip_norm,
        steps=subject.steps,
        delta=delta,
        claimed_epsilon=claim(delta),
        canaries=canaries,
        included=int(seen.included.sum()),
        seed=seed,
        confidence=CONFIDENCE,
        false_alarm_rate=false_alarm_rate,
        bounds=_bounds(seen, delta=delta, claim=claim, false_alarm_rate=false_alarm_rate / 2),
        tests=tuple(Test(**asdict(test)) for test in tests),
        neighbours=NeighbourResult(**asdict(neighbours), tolerance=TOLERANCE),
        code=code,
        seconds=time.perf_counter() - started,
    )


def _bounds(
    seen: Observation, *, delta: float, claim: Callable[[float], float], false_alarm_rate: float
) -> tuple[Bound, ...]:
    """Return the bounds with the confidence that is shown; they flag where those at the false-alarm rate do."""
    inside, outside = seen.scores[seen.included], seen.scores[~seen.included]

    def both(at: float) -> tuple[LowerBound, LowerBound]:
        shown = lower_bound(inside, outside, delta=at, significance=1 - CONFIDENCE)
        return shown, lower_bound(inside, outside, delta=at, significance=false_alarm_rate / _METHODS)

    def bound(estimate: Estimate, strict: Estimate, at: float) -> Bound:
        return Bound(
            method=estimate.method,
            delta=at,
            claimed_epsilon=claim(at),
            epsilon=estimate.epsilon,
            ceiling=estimate.ceiling,
            guesses=estimate.best.guesses,
            correct=estimate.best.correct,
            flagged=strict.epsilon > claim(at),
        )

    small = min(delta, _DELTA_OF_STEINKE)
    (shown, sure), (shown_at_small, sure_at_small) = both(delta), both(small)
    return (
        bound(shown_at_small.steinke, sure_at_small.steinke, small),
        bound(shown.fdp_approximate, sure.fdp_approximate, delta),
        bound(shown.fdp_gaussian, sure.fdp_gaussian, delta),
    )
