"""What a history of noisy steps costs a patient: epsilon at delta, by two independent accountants.

A step is the Poisson-subsampled Gaussian mechanism under adding or removing one patient. Opacus' PRV accountant (Gopi
et al. 2021, arXiv:2106.02848) and Google's PLD accountant (connect the dots, Doroshenko et al. 2022, arXiv:2207.04380)
price the same history. Both give upper bounds and the larger counts. A disagreement is refused: one has a bug, or the
numbers have left the range in which both hold.

Speed is bought with pessimism only: a coarser mesh, whose error is part of each bound, and in long histories merged
mechanisms, which take the least noise and the highest rate among them.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from multimix.errors import Refused
from multimix.privacy.bounds import Rows, log_leakage, pld_epsilon, prv_epsilon, renyi_epsilon


@dataclass(frozen=True, order=True)
class Mechanism:
    """One step: patients sampled by Poisson at a rate, their sum of sensitivity 1 released with Gaussian noise.

    `sampling_rate` 1 takes everybody: the plain Gaussian mechanism.
    """

    noise_multiplier: float  # standard deviation of the noise in units of the sensitivity
    sampling_rate: float


History = Mapping[Mechanism, int]  # steps of each


@dataclass(frozen=True)
class Price:
    """What a history costs at `delta`: `epsilon` is the larger of the two accountants' upper bounds."""

    epsilon: float
    prv: float  # Opacus
    pld: float  # Google
    delta: float

    @property
    def difference(self) -> float:
        """How far the accountants are apart. PRV adds its mesh error to its bound, so about 0.01 is usual."""
        return abs(self.prv - self.pld)


Array = npt.NDArray[Any]
_NONE: Final[History] = MappingProxyType({})

# The range in which both accountants were compared on a grid; they are refused outside.
_NOISE: Final = (0.1, 1e5)
_LOWEST_RATE: Final = 1e-5
_LOWEST_DELTA: Final = 1e-10
_MOST_STEPS: Final = 2_000_000
_MOST_EPSILON: Final = 100.0  # nothing is protected long before; a mesh for more takes gigabytes
_MOST_RENYI_EPSILON: Final = 2000.0  # of the rough bound, which may be far too high: only to save memory

_APART: Final = 0.02  # the accountants may be, plus
_APART_RELATIVE: Final = 0.01  # of the larger

# So many mechanisms are priced as they are: each takes about 0.05 s in each accountant, 0.1 s in long histories.
_GROUPS: Final = 16
_GROUPS_OF_LONG: Final = 10
_LONG: Final = 20_000  # steps


def price(history: History, *, delta: float) -> Price:
    """Price a history: the larger of Opacus' PRV and Google's PLD, both upper bounds.

    Histories of more than 16 mechanisms (10 beyond 20,000 steps) are merged into so many first, which overstates.

    Raises:
        Refused: "dp_parameters" outside of noise multiplier 0.1 to 1e5, sampling rate 1e-5 to 1, 0 to 2 million
            steps, delta 1e-10 to 1 (exclusive); "epsilon_too_large" above 100; "accountants_disagree" when they
            differ by more than 0.02 + 1 % or when one of them fails.
    """
    _check_delta(delta)
    _check_history(history)
    return _price(_simplified(history), delta)


def merged(history_a: History, history_b: History) -> dict[Mechanism, int]:
    """Add up the steps of two histories."""
    return {m: history_a.get(m, 0) + history_b.get(m, 0) for m in sorted({*history_a, *history_b})}


def default_delta(patients: int) -> float:
    """Return delta for a population: N^-1.1.

    It has to be well below 1/N, since a mechanism that publishes one patient in N outright has delta 1/N (Ponomareva
    et al. 2023, arXiv:2303.00654, section 5.3.2, whose recommendation this is).

    Raises:
        Refused: "dp_parameters" for fewer than 2 patients, where no delta below 1 follows.
    """
    if patients < 2:  # noqa: PLR2004
        raise Refused("dp_parameters", "a population needs 2 patients at least")
    return float(patients**-1.1)


def calibrate_noise(
    *, target_epsilon: float, delta: float, sampling_rate: float, steps: int, spent: History = _NONE
) -> float:
    """Return the smallest noise multiplier, in thousandths, with which the steps on top of `spent` keep to the target.

    Raises:
        Refused: "epsilon_unreachable" if no noise is enough, else as `price`.
    """
    _check_limit(target_epsilon)
    _check_delta(delta)
    _check_history(merged(spent, {Mechanism(1.0, sampling_rate): steps}))

    def history(thousandths: int) -> History:
        return merged(spent, {Mechanism(thousandths / 1000, sampling_rate): steps})

    def epsilon(thousandths: int) -> float:
        return _epsilon(history(thousandths), delta)

    lowest, highest = (round(bound * 1000) for bound in _NOISE)
    enough = lowest
    while enough < highest and _rough_epsilon(history(enough), delta) > target_epsilon:
        enough = min(2 * enough, highest)
    while epsilon(enough) > target_epsilon:
        if enough == highest:
            raise Refused("epsilon_unreachable", f"no noise keeps to {target_epsilon:g} on top of what is spent")
        enough = min(4 * enough, highest)
    too_little = enough
    while epsilon(too_little) <= target_epsilon:
        if too_little == lowest:
            return lowest / 1000
        enough, too_little = too_little, max(too_little // 2, lowest)
    return _last_within(epsilon, target_epsilon, within=enough, beyond=too_little) / 1000


def affordable_steps(
    *, mechanism: Mechanism, delta: float, limit_epsilon: float, spent: History = _NONE, at_most: int
) -> int:
    """Return how many steps of a mechanism fit on top of `spent`: the largest number priced within the limit.

    Never more than `at_most`, nor than the 2 million steps a history may have. 0 if `spent` is beyond the limit.

    Raises:
        Refused: As `price`.
    """
    _check_limit(limit_epsilon)
    _check_delta(delta)
    _check_history({mechanism: at_most})
    _check_history(spent)

    def history(steps: int) -> History:
        return merged(spent, {mechanism: steps})

    def epsilon(steps: int) -> float:
        return _epsilon(history(steps), delta)

    last = min(at_most, _MOST_STEPS - sum(spent.values()))
    within = 0
    beyond = bisect_right(range(last), limit_epsilon, lo=min(1, last), key=lambda n: _rough_epsilon(history(n), delta))
    while epsilon(beyond) <= limit_epsilon:
        if beyond == last:
            return last
        within, beyond = beyond, min(last, beyond + beyond // 4 + 1)
    if epsilon(within) > limit_epsilon:
        return 0
    return _last_within(epsilon, limit_epsilon, within=within, beyond=beyond)


def versions() -> dict[str, str]:
    """Return the installed versions of both accountants, for statements."""
    return {name: metadata.version(name) for name in ("opacus", "dp-accounting")}


def _last_within(epsilon: Callable[[int], float], limit: float, *, within: int, beyond: int) -> int:
    """Return the last integer from `within` towards `beyond` at which a monotone epsilon keeps to the limit.

    False position with the Illinois rule on epsilon squared, which is nearly linear in the steps.
    """

    def excess(at: int) -> float:
        return float(epsilon(at) ** 2 - limit**2)

    low, high = excess(within), excess(beyond)
    was_within: bool | None = None
    while abs(beyond - within) > 1:
        share = -low / (high - low) if math.isfinite(high) else 0.5
        guess = within + round(share * (beyond - within))
        guess = min(max(guess, min(within, beyond) + 1), max(within, beyond) - 1)
        value = excess(guess)
        is_within = value <= 0
        if is_within:
            within, low = guess, value
            high = high / 2 if was_within is True else high
        else:
            beyond, high = guess, value
            low = low / 2 if was_within is False else low
        was_within = is_within
    return within


def _epsilon(history: History, delta: float) -> float:
    try:
        return price(history, delta=delta).epsilon
    except Refused as refused:
        if refused.reason == "epsilon_too_large":
            return math.inf
        raise


@lru_cache(maxsize=4096)
def _price(rows: Rows, delta: float) -> Price:
    if not rows:
        return Price(epsilon=0.0, prv=0.0, pld=0.0, delta=delta)
    pld = math.inf
    if renyi_epsilon(rows, delta) <= _MOST_RENYI_EPSILON:
        pld = _or_nan(lambda: pld_epsilon(rows, delta))
    if pld > _MOST_EPSILON:
        raise Refused("epsilon_too_large", f"above {_MOST_EPSILON:g}, which is not priced")
    prv = _or_nan(lambda: prv_epsilon(rows, delta, about=pld))
    if not _agreed(prv, pld):
        raise Refused("accountants_disagree", f"PRV {prv:.4f}, PLD {pld:.4f}")
    return Price(epsilon=max(prv, pld), prv=prv, pld=pld, delta=delta)


def _agreed(prv: float, pld: float) -> bool:
    """Whether the two are within 0.02 + 1 % of the larger; never if one is not a number or infinite."""
    finite = math.isfinite(prv) and math.isfinite(pld)
    return finite and abs(prv - pld) <= _APART + _APART_RELATIVE * max(prv, pld)


def _or_nan(accountant: Callable[[], float]) -> float:
    """Run an accountant in silence: its warnings are about its own mesh, its failure is a disagreement."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            epsilon = accountant()
        except Exception:  # noqa: BLE001  (whatever went wrong with theirs, the price is unknown)
            return math.nan
    return 0.0 if epsilon < 0 else epsilon  # not max(), which would make 0 of what is not a number


def _rough_epsilon(history: History, delta: float) -> float:
    return renyi_epsilon(_simplified(history), delta)


def _simplified(history: History) -> Rows:
    """Return a history of few mechanisms that costs as much or more: the form that is priced."""
    kept = {mechanism: count for mechanism, count in history.items() if count}
    allowed = _GROUPS if sum(kept.values()) <= _LONG else _GROUPS_OF_LONG
    priced: dict[Mechanism, int] = {}
    for group in _groups(sorted(kept), allowed):
        worst = Mechanism(min(m.noise_multiplier for m in group), max(m.sampling_rate for m in group))
        priced[worst] = priced.get(worst, 0) + sum(kept[m] for m in group)
    return tuple(sorted((m.noise_multiplier, m.sampling_rate, count) for m, count in priced.items()))


def _groups(mechanisms: list[Mechanism], allowed: int) -> list[list[Mechanism]]:
    """Cut the mechanisms into so many groups of neighbours, always the widest along its wider side of log leakage."""
    if len(mechanisms) <= allowed:
        return [[mechanism] for mechanism in mechanisms]
    sides = np.array([(log_leakage(m.noise_multiplier), math.log(m.sampling_rate)) for m in mechanisms])
    groups = [np.arange(len(mechanisms))]
    while len(groups) < allowed:
        groups.sort(key=lambda group: float(np.ptp(sides[group], axis=0).max()))
        groups.extend(_halves(sides, groups.pop()))
    return [[mechanisms[index] for index in group] for group in groups]


def _halves(sides: Array, group: Array) -> tuple[Array, Array]:
    values = sides[group, int(np.ptp(sides[group], axis=0).argmax())]
    order = np.argsort(values, kind="stable")
    middle = (values.min() + values.max()) / 2
    cut = min(max(int(np.searchsorted(values[order], middle)), 1), len(group) - 1)
    return group[order[:cut]], group[order[cut:]]


def _check_history(history: History) -> None:
    for mechanism, count in history.items():
        if not _NOISE[0] <= mechanism.noise_multiplier <= _NOISE[1]:
            raise Refused("dp_parameters", f"noise multiplier outside {_NOISE[0]:g} to {_NOISE[1]:g}")
        if not _LOWEST_RATE <= mechanism.sampling_rate <= 1:
            raise Refused("dp_parameters", f"sampling rate outside {_LOWEST_RATE:g} to 1")
        if not isinstance(count, int) or count < 0:
            raise Refused("dp_parameters", "steps are not a whole number from 0")
    if sum(history.values()) > _MOST_STEPS:
        raise Refused("dp_parameters", f"more than {_MOST_STEPS} steps")


def _check_delta(delta: float) -> None:
    if not _LOWEST_DELTA <= delta < 1:
        raise Refused("dp_parameters", f"delta outside {_LOWEST_DELTA:g} to 1")


def _check_limit(epsilon: float) -> None:
    if not 0 < epsilon <= _MOST_EPSILON:
        raise Refused("dp_parameters", f"epsilon outside 0 to {_MOST_EPSILON:g}")
