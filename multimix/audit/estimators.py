"""Lower bounds on epsilon from one training run: what the canaries an auditor planted prove about the trainer.

Each of m canaries is put in by a fair coin of its own. From the released result the auditor guesses for r of them
whether they were in. Privacy limits how many guesses can be right; when more are, an epsilon is refuted at a level of
significance: of correct trainers at most that share is refuted wrongly.

* Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), theorem 5.2: holds for everything that is (epsilon, delta)-DP. Its
  term for delta grows with m, and leaves nothing to show when m delta is not well below the significance.
* Mahloujifar, Melis, Chaudhuri 2024 (arXiv:2410.22235): tests a whole trade-off curve. With the curve of
  (epsilon, delta)-DP it holds as Steinke's does and suffers less from delta. With a Gaussian's it is far sharper, and
  presumes a trainer that leaks no more than one Gaussian mechanism of the same epsilon at delta.

How many guesses to make must not be chosen by looking at the outcome: `lower_bound` tries a list fixed in advance and
divides the significance among its entries (Bonferroni). No number of canaries proves more than `ceiling` says.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import bdtr, betainc, betaincinv, expit, gammaln, log_expit, log_ndtr, logit, ndtri

from multimix.errors import Refused

Array = npt.NDArray[Any]
Method = Literal["steinke", "fdp_approximate", "fdp_gaussian"]
InverseBlowUp = Callable[[float], float]

_HIGHEST_SIGNIFICANCE: Final = 0.25  # up to it the p-value of Steinke et al. rises with epsilon
_FEWEST_GUESSES: Final = 32  # all right at significance 0.01 they prove epsilon 1.9
_UNFAIR_COINS: Final = 1e-6  # a split of canaries as lopsided as this is not by fair coins
_TOLERANCE: Final = 1e-10


@dataclass(frozen=True)
class Guesses:
    """Outcome of an audit: of `canaries` `guesses` were guessed, in or out, of which `correct` rightly.

    Raises:
        Refused: "audit_counts" unless 0 <= correct <= guesses <= canaries and guesses > 0, whole numbers.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        counts = (self.canaries, self.guesses, self.correct)
        if not all(isinstance(count, int) and not isinstance(count, bool) for count in counts):
            raise Refused("audit_counts", "counts of canaries and guesses are not whole numbers")
        if not (0 <= self.correct <= self.guesses <= self.canaries and self.guesses > 0):
            raise Refused("audit_counts", "not 0 <= correct <= guesses <= canaries with a guess at least")


@dataclass(frozen=True)
class Estimate:
    """Lower bound by one method: the best over the numbers of guesses tried, all corrected for."""

    method: Method
    epsilon: float
    ceiling: float  # what the same audit would have shown with every guess right
    best: Guesses  # the counts that `epsilon` comes from


@dataclass(frozen=True)
class LowerBound:
    """What one audit shows. Each estimate holds at `significance` by itself; k of them together at k times it."""

    canaries: int
    included: int
    delta: float
    significance: float
    guesses: tuple[int, ...]  # tried; the significance is divided among them
    steinke: Estimate
    fdp_approximate: Estimate
    fdp_gaussian: Estimate


def lower_bound(
    scores_included: npt.ArrayLike,
    scores_excluded: npt.ArrayLike,
    *,
    delta: float,
    significance: float,
    guesses: Sequence[int] | None = None,
) -> LowerBound:
    """Bound epsilon from below by the scores of the canaries that were in and of those that were out.

    A score says how much a canary looks as if it had been in, computed without knowing whether it was. Every canary
    must have been included by a fair coin of its own; a split of exactly half is not covered. Of r guesses the r/2
    highest scores are guessed in, the r/2 lowest out. Give `guesses` only if they were fixed before the audit.

    Raises:
        Refused: "audit_scores" if scores are not finite numbers in a row; "audit_inclusion" if no fair coins split
            so; "audit_parameters" for delta outside 0 to 1 (exclusive) or a significance outside 0 to 0.25, and no or
            repeated numbers of guesses; "audit_counts" for more guesses than canaries.
    """
    included, excluded = _scores(scores_included), _scores(scores_excluded)
    canaries = len(included) + len(excluded)
    _check_coins(len(included), canaries)
    tried = _tried(canaries, guesses)
    counts = [
        Guesses(canaries, r, correct_guesses(included, excluded, guessed_in=(r + 1) // 2, guessed_out=r // 2))
        for r in tried
    ]

    def estimate(method: Method) -> Estimate:
        epsilon, best = _best(counts, delta=delta, significance=significance, method=method)
        most = ceiling(canaries, delta=delta, significance=significance, method=method, guesses=tried)
        return Estimate(method, epsilon, most, best)

    return LowerBound(
        canaries=canaries,
        included=len(included),
        delta=delta,
        significance=significance,
        guesses=tried,
        steinke=estimate("steinke"),
        fdp_approximate=estimate("fdp_approximate"),
        fdp_gaussian=estimate("fdp_gaussian"),
    )


def ceiling(
    canaries: int, *, delta: float, significance: float, method: Method, guesses: Sequence[int] | None = None
) -> float:
    """Return the epsilon that `lower_bound` shows with every guess right: the most so many canaries permit."""
    return _ceiling(_tried(canaries, guesses), canaries, delta, significance, method)


def numbers_of_guesses(canaries: int) -> tuple[int, ...]:
    """Return how many guesses to try: nearly all canaries, half as many and so on, 32 at least.

    Many guesses show a trainer without protection; few, of the most extreme scores, a weak one. Nearly all: half of
    them are guessed in, and 4 standard deviations are left for coins that put fewer in.
    """
    numbers = [max(canaries - math.isqrt(16 * canaries), (canaries + 1) // 2)]
    while numbers[-1] // 2 >= _FEWEST_GUESSES:
        numbers.append(numbers[-1] // 2)
    return tuple(numbers)


def correct_guesses(included: Array, excluded: Array, *, guessed_in: int, guessed_out: int) -> int:
    """Count the right guesses when the highest scores are guessed in and the lowest out.

    Ties are broken against the auditor: no rule that does not know the answers is right less often.

    Raises:
        Refused: "audit_counts" for negative numbers or more guesses than canaries.
    """
    if min(guessed_in, guessed_out) < 0 or guessed_in + guessed_out > len(included) + len(excluded):
        raise Refused("audit_counts", "more guesses than canaries, or fewer than none")
    return _highest(included, excluded, guessed_in) + _highest(-excluded, -included, guessed_out)


def steinke_epsilon(g: Guesses, *, delta: float, significance: float) -> float:
    """Return the epsilon below which the guesses refute (epsilon, delta)-DP; 0 if none (arXiv:2305.08846).

    Raises:
        Refused: "audit_parameters" as `lower_bound`.
    """
    _check(delta, significance)
    if g.correct == 0:
        return 0.0
    # Where the binomial tail alone reaches the significance (Clopper-Pearson); delta only lowers it.
    most = float(logit(betaincinv(g.correct, g.guesses - g.correct + 1, significance)))
    if most <= 0 or delta == 0:
        return max(0.0, most)
    return _last_refuted(lambda epsilon: significance - steinke_p_value(g, epsilon=epsilon, delta=delta), most)


def steinke_p_value(g: Guesses, *, epsilon: float, delta: float) -> float:
    """Return the largest probability of so many right guesses under (epsilon, delta)-DP (theorem 5.2).

    P(X >= v) + 2 m delta max_i P(v - i <= X < v) / i, for X binomial of r guesses that are right with probability
    e^epsilon / (1 + e^epsilon). It rises with epsilon wherever it is at most 1/4: below that v is above the mode of X,
    and the mass of X moves towards v.
    """
    if g.correct == 0:
        return 1.0
    tail = betainc(g.correct, g.guesses - g.correct + 1, expit(epsilon))
    below = np.arange(g.correct - 1, -1, -1.0)  # v - 1, v - 2, ... right guesses
    log_ways = gammaln(g.guesses + 1) - gammaln(below + 1) - gammaln(g.guesses - below + 1)
    log_mass = log_ways + below * log_expit(epsilon) + (g.guesses - below) * log_expit(-epsilon)
    worst = np.max(np.cumsum(np.exp(log_mass)) / np.arange(1, g.correct + 1))
    return min(1.0, float(tail + 2 * g.canaries * delta * worst))


def fdp_approximate_epsilon(g: Guesses, *, delta: float, significance: float) -> float:
    """Return the epsilon below which the guesses refute the trade-off curve of (epsilon, delta)-DP; 0 if none.

    Raises:
        Refused: "audit_parameters" as `lower_bound`.
    """
    _check(delta, significance)
    return _last_refuted(lambda epsilon: fdp_excess(g, approximate_curve(epsilon, delta), significance=significance))


def fdp_gaussian_epsilon(g: Guesses, *, delta: float, significance: float) -> float:
    """Return the epsilon at delta of the weakest Gaussian mechanism that the guesses do not refute; 0 if none.

    It bounds the epsilon of a trainer that leaks no more than the Gaussian mechanism with the same epsilon at delta.
    Poisson-subsampled Gaussian steps do: their delta is below the Gaussian's at every smaller epsilon (a test compares
    them), above it only for events rarer than delta. Others need not: randomised response leaks far more.

    Raises:
        Refused: "audit_parameters" as `lower_bound`, and for delta 0, at which no Gaussian mechanism has an epsilon.
    """
    _check(delta, significance)
    if delta == 0:
        raise Refused("audit_parameters", "no Gaussian mechanism has an epsilon at delta 0")
    mu = _last_refuted(lambda mu: fdp_excess(g, gaussian_curve(mu), significance=significance))
    return _gaussian_epsilon(mu, delta)


def fdp_excess(g: Guesses, curve: InverseBlowUp, *, significance: float) -> float:
    """Return a number above 0 if the guesses refute a trade-off curve, 0 or below if not (arXiv:2410.22235).

    `curve` is the inverse blow-up function of the trade-off curve f, f(1 - x): the least that an event of probability
    x can have on the neighbouring data. Suppose v or more guesses are right with the probability of the significance.
    Then `right` is the least expected number of right guesses on the event that i or more are right, over m, and
    `wrong` that of wrong ones, for i from v down to 0, where they add up to r / m: more is a contradiction.
    """
    right = significance * g.correct / g.canaries
    wrong = significance * (g.guesses - g.correct) / g.canaries
    for i in range(g.correct - 1, -1, -1):
        more = curve(right) - wrong
        if more <= 0:
            break  # nothing changes any more
        wrong += more
        right = min(1.0, right + more * i / (g.guesses - i))
    return right + wrong - g.guesses / g.canaries


def approximate_curve(epsilon: float, delta: float) -> InverseBlowUp:
    """Return the inverse blow-up function of (epsilon, delta)-DP."""
    ratio = math.exp(epsilon)
    return lambda x: max(0.0, 1 - delta - ratio * (1 - x), (x - delta) / ratio)


def gaussian_curve(mu: float) -> InverseBlowUp:
    """Return the inverse blow-up function of a Gaussian mechanism of sensitivity `mu` standard deviations."""
    return lambda x: 0.5 * math.erfc((mu - float(ndtri(x))) / math.sqrt(2))


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the exact epsilon at delta (Balle and Wang 2018, arXiv:1805.06530, theorem 8)."""

    def log_excess(epsilon: float) -> float:
        near, far = log_ndtr(mu / 2 - epsilon / mu), log_ndtr(-mu / 2 - epsilon / mu)
        return float(near + np.log(-np.expm1(epsilon + far - near)) - math.log(delta))

    if mu == 0 or log_excess(0.0) <= 0:
        return 0.0
    most = mu * (mu / 2 - float(ndtri(delta)))  # where the first term alone is delta
    return float(brentq(log_excess, 0.0, most, xtol=_TOLERANCE))


def _last_refuted(excess: Callable[[float], float], most: float = 0.5) -> float:
    """Return where a falling `excess` crosses 0; `most` is a guess at it from above. 0 if it is never positive."""
    if excess(0.0) <= 0:
        return 0.0
    least, most = 0.0, most + 1e-6
    while excess(most) > 0:
        least, most = most, 2 * most
    return float(brentq(excess, least, most, xtol=_TOLERANCE))


_EPSILON: Final = MappingProxyType(
    {
        "steinke": steinke_epsilon,
        "fdp_approximate": fdp_approximate_epsilon,
        "fdp_gaussian": fdp_gaussian_epsilon,
    }
)


@lru_cache(maxsize=256)
def _ceiling(tried: tuple[int, ...], canaries: int, delta: float, significance: float, method: Method) -> float:
    perfect = [Guesses(canaries, r, r) for r in tried]
    return _best(perfect, delta=delta, significance=significance, method=method)[0]


def _best(counts: list[Guesses], *, delta: float, significance: float, method: Method) -> tuple[float, Guesses]:
    """Return the largest bound and its counts, the significance divided among all."""
    _check(delta, significance)
    share = significance / len(counts)
    bounds = [(_EPSILON[method](g, delta=delta, significance=share), g) for g in counts]
    return max(bounds, key=lambda bound: bound[0])


def _highest(wanted: Array, others: Array, most: int) -> int:
    """Count the wanted among the highest `most` scores of both; among equal scores the others come first."""
    scores = np.concatenate([wanted, others])
    is_wanted = np.arange(len(scores)) < len(wanted)
    return int(is_wanted[np.lexsort((is_wanted, -scores))[:most]].sum())


def _tried(canaries: int, guesses: Sequence[int] | None) -> tuple[int, ...]:
    tried = numbers_of_guesses(canaries) if guesses is None else tuple(guesses)
    if not tried or len(set(tried)) < len(tried):
        raise Refused("audit_parameters", "no numbers of guesses, or one twice")
    for number in tried:
        Guesses(canaries, number, 0)
    return tried


def _scores(scores: npt.ArrayLike) -> Array:
    try:
        found = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise Refused("audit_scores", "scores are not numbers") from None
    if found.ndim != 1 or not np.isfinite(found).all():
        raise Refused("audit_scores", "scores are not finite numbers in a row")
    return found


def _check_coins(included: int, canaries: int) -> None:
    if canaries == 0:
        raise Refused("audit_counts", "no canaries")
    fewer = min(included, canaries - included)
    if 2 * bdtr(fewer, canaries, 0.5) < _UNFAIR_COINS:
        raise Refused("audit_inclusion", "fair coins do not split the canaries so")


def _check(delta: float, significance: float) -> None:
    if not 0 <= delta < 1:
        raise Refused("audit_parameters", "delta outside 0 to 1")
    if not 0 < significance <= _HIGHEST_SIGNIFICANCE:
        raise Refused("audit_parameters", f"significance outside 0 to {_HIGHEST_SIGNIFICANCE:g}")
