"""Direct tests of what was observed: is the noise as strong as claimed, fresh in every step, and no patient louder?

The one-run bounds hold whatever the trainer does, and need much leakage to show any. Here the auditor uses what a
correct trainer must do: coordinate j of step t is Gaussian noise of standard deviation sigma, plus 1 (in units of the
clip norm) where canary j was in the step. Each test is one number whose distribution is known for a correct trainer;
it flags in the direction that costs privacy, at its share of the audit's false-alarm rate (Bonferroni).

| test | statistic | it shows |
|---|---|---|
| `noise` | standard deviation where no canary was in, over sigma | too little noise |
| `noise_sum` | the same of the sum over all steps | noise repeated, or cancelled, between steps |
| `noise_lag_1` | correlation of a step with the next | noise repeated from step to step |
| `noise_coordinates` | correlation of a coordinate with the next | noise shared between coordinates |
| `sensitivity` | mean where a canary was in the step | a patient counts for more than the clip norm |
| `participation` | mean where a canary was drawn out of the step | patients take part whom the lot left out |
| `exclusion` | mean where no canary was in | the sum moves without any patient |
| `rate` | mean of the canaries that were in, over all steps | they take part more often than the rate says |

The audit head is not what is released. So a few steps are taken with nobody in them, where every parameter is noise and
nothing else; that noise must be as strong, and each of its numbers drawn for one use:

| test | statistic | it shows |
|---|---|---|
| `noise_parameters` | as `noise`, of each parameter and of each step | noise only where the audit looks |
| `noise_steps` | correlation of every two steps, over all parameters and of each | noise repeated between steps |
| `noise_tensors` | of all parameters in a row at any lag; of every two by their beginnings | noise shared by them |
| `noise_repeats` | numbers that occur again, whatever their sign | noise used twice, in any order |

Not seen: noise mixed of fewer numbers into all different ones, as by a random projection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import fft, special, stats

from multimix.audit.observation import Observation
from multimix.errors import Refused

Direction = Literal["low", "high", "both"]
Array = npt.NDArray[Any]
NUMBER_OF_TESTS: Final = 12
_ABSURD: Final = 1e100  # times sigma: beyond it sums of squares could overflow


@dataclass(frozen=True)
class DirectTest:
    """One test: what was measured, what is expected of a correct trainer, and whether chance explains the rest."""

    name: str
    measured: float
    expected: float
    z: float  # deviation from what is expected, in standard deviations
    p_value: float
    count: int  # of numbers behind it
    flagged: bool


def direct_tests(seen: Observation, *, false_alarm_rate: float) -> tuple[DirectTest, ...]:
    """Return all tests of the audit head; with `noise_tests` they flag a correct trainer this often at most.

    Raises:
        Refused: `audit_parameters` for a rate outside 0 to 1, fewer than two steps, or where no noise was claimed;
            `audit_not_finite`.
    """
    if len(seen.values) < 2:  # noqa: PLR2004  (there is no lag in one step)
        raise Refused("audit_parameters", "two steps at least")
    _check(seen.noise_multiplier, false_alarm_rate, [seen.values])
    sigma, rate, steps = seen.noise_multiplier, seen.sampling_rate, len(seen.values)
    noise, taking_part = seen.values[:, ~seen.included], seen.values[:, seen.included]
    drawn_out = seen.values[seen.included[None] & ~seen.sampled]
    spread_of_rate = float(np.sqrt(sigma**2 + rate * (1 - rate)))
    judge = _Judge(false_alarm_rate / NUMBER_OF_TESTS)
    return (
        judge.spread("noise", noise, sigma, "low"),
        judge.spread("noise_sum", noise.sum(axis=0), sigma * np.sqrt(steps), "both"),
        judge.correlation("noise_lag_1", noise[:-1], noise[1:]),
        judge.correlation("noise_coordinates", noise[:, :-1], noise[:, 1:]),
        judge.mean("sensitivity", seen.values[seen.sampled], 1.0, sigma, "high"),
        judge.mean("participation", drawn_out, 0.0, sigma, "both"),
        judge.mean("exclusion", noise, 0.0, sigma, "both"),
        judge.mean("rate", taking_part, rate, spread_of_rate, "high"),
    )


def noise_tests(nobody: Mapping[str, Array], sigma: float, *, false_alarm_rate: float) -> tuple[DirectTest, ...]:
    """Return the tests of steps with nobody in them; each is the worst of what it looked at, with Bonferroni's p-value.

    Args:
        nobody: Noised sum by parameter [steps, ...], in units of the clip norm, float64 as noise is drawn: noise and
            nothing else. Memory: three times that of these.
        sigma: Claimed noise multiplier.
        false_alarm_rate: As of `direct_tests`; these are some of the tests that share it.

    Raises:
        Refused: as `direct_tests`.
    """
    _check(sigma, false_alarm_rate, list(nobody.values()))
    if min(len(values) for values in nobody.values()) < 2:  # noqa: PLR2004
        raise Refused("audit_parameters", "two steps at least")
    flat = [values.reshape(len(values), -1) for values in nobody.values()]
    together = np.concatenate(flat, axis=1)
    parts = np.split(together, np.cumsum([each.shape[1] for each in flat])[:-1], axis=1)  # views
    judge, by_size = _Judge(false_alarm_rate / NUMBER_OF_TESTS), sorted(parts, key=lambda part: part.size)
    lags = [judge.lags("noise_tensors", step) for step in together]
    beginnings = [
        judge.alike("noise_tensors", small, large[:, : small.shape[1]]) for small, large in combinations(by_size, 2)
    ]
    return (
        judge.worst([judge.spread("noise_parameters", values, sigma, "low") for values in (*parts, *together)]),
        judge.worst([judge.alike("noise_steps", *two) for part in (together, *parts) for two in combinations(part, 2)]),
        judge.worst([judge.worst(each) for each in (lags, beginnings) if each]),
        judge.repeats("noise_repeats", together),
    )


@dataclass(frozen=True)
class _Judge:
    """Makes tests of statistics, at one significance."""

    significance: float

    def spread(self, name: str, values: Array, sigma: float, direction: Direction) -> DirectTest:
        """Compare a standard deviation with the one known: the sum of squares is chi-squared."""
        count = values.size
        squares = float(np.sum((values / sigma) ** 2)) if count else 0.0
        low, high = (float(stats.chi2.cdf(squares, count)), float(stats.chi2.sf(squares, count))) if count else (1, 1)
        ratio = float(np.sqrt(squares / count)) if count else 1.0
        p = _p_value(low, high, direction)
        return DirectTest(name, ratio, 1.0, (ratio - 1) * float(np.sqrt(2 * count)), p, count, p < self.significance)

    def correlation(self, name: str, first: Array, second: Array) -> DirectTest:
        """Compare a correlation about zero with 0; it is asymptotically normal with variance 1/n."""
        scale = float(np.sqrt(np.sum(first**2) * np.sum(second**2)))
        found = float(np.sum(first * second)) / scale if scale > 0 else 1.0  # noise that is always zero repeats itself
        z = found * float(np.sqrt(first.size))
        p = _p_value(float(stats.norm.cdf(z)), float(stats.norm.sf(z)), "both")
        return DirectTest(name, found, 0.0, z, p, first.size, p < self.significance)

    def alike(self, name: str, first: Array, second: Array) -> DirectTest:
        """As `correlation`, of independent draws and exact for a few: the square of n is Beta(1/2, (n - 1) / 2)."""
        count, scale = first.size, float(np.sqrt(np.sum(first**2) * np.sum(second**2)))
        found = float(np.sum(first * second)) / scale if scale > 0 else 1.0
        p = float(special.betaincc(0.5, (count - 1) / 2, min(1.0, found**2))) if count > 1 else 1.0
        return DirectTest(name, found, 0.0, found * float(np.sqrt(count)), p, count, p < self.significance)

    def lags(self, name: str, values: Array) -> DirectTest:
        """Compare the largest correlation of numbers with those any lag behind with 0, all lags by FFT.

        One lag's is asymptotically normal with variance 1/n at most; its tails are no heavier (bounded by the norm).
        """
        count, squares = values.size, float(np.sum(values**2))
        spectrum = fft.rfft(values, fft.next_fast_len(2 * count, real=True))  # padded, so that it does not wrap round
        of_lags = fft.irfft(spectrum.real**2 + spectrum.imag**2, fft.next_fast_len(2 * count, real=True))[1:count]
        worst = float(of_lags[np.argmax(np.abs(of_lags))]) if len(of_lags) else 0.0
        found = worst / squares if squares > 0 else 1.0
        z = found * float(np.sqrt(count))
        p = min(1.0, 2 * float(stats.norm.sf(abs(z))) * max(1, len(of_lags)))
        return DirectTest(name, found, 0.0, z, p, count, p < self.significance)

    def repeats(self, name: str, values: Array) -> DirectTest:
        """Compare how many numbers occur again with how many rounding makes equal: Poisson, in float64 next to none.

        Two of n normals x, y have |x| = |y| in float64 with probability 2 E[f(x) spacing(x)] < 2^-53, where
        spacing(x) <= 2^-52 |x| and E[f(x) |x|] = 1 / (2 pi); the expected number allows for six times as much.
        """
        ordered = np.sort(np.abs(values), axis=None)
        found = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
        expected = float(values.size) ** 2 * 2.0**-52
        p = float(stats.poisson.sf(found - 1, expected))
        z = (found - expected) / float(np.sqrt(expected))
        return DirectTest(name, float(found), expected, z, p, values.size, p < self.significance)

    def worst(self, found: Sequence[DirectTest]) -> DirectTest:
        """Return the test with the least p-value, which pays for looking at all of them."""
        least = min(found, key=lambda test: test.p_value)
        p = min(1.0, least.p_value * len(found))
        return replace(least, p_value=p, flagged=p < self.significance)

    def mean(self, name: str, values: Array, expected: float, sigma: float, direction: Direction) -> DirectTest:
        """Compare a mean with the one known; nothing is shown where there are no numbers."""
        found = float(values.mean()) if values.size else expected
        z = (found - expected) * float(np.sqrt(values.size)) / sigma
        p = _p_value(float(stats.norm.cdf(z)), float(stats.norm.sf(z)), direction)
        return DirectTest(name, found, expected, z, p, values.size, p < self.significance)


def _p_value(low: float, high: float, direction: Direction) -> float:
    """Return the p-value of a statistic by the probabilities of one as low, and of one as high."""
    return {"low": low, "high": high, "both": min(1.0, 2 * min(low, high))}[direction]


def _check(sigma: float, false_alarm_rate: float, values: Sequence[Array]) -> None:
    if not 0 < false_alarm_rate < 1:
        raise Refused("audit_parameters", "a false-alarm rate between 0 and 1")
    if not sigma > 0:
        raise Refused("audit_parameters", "no noise is claimed: there is nothing to hold the noise against")
    if not values or not all(np.max(np.abs(each), initial=0.0) < _ABSURD * sigma for each in values):  # nor NaN
        raise Refused("audit_not_finite")
