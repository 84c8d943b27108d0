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
from functools import cache, lru_cache
from importlib import metadata
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from multimix.errors import Refused


@dataclass(frozen=True, order=True)
class Mechanism:
    """One step: patients sampled by Poisson at a rate, their sum of sensitivity 1 released with Gaussian noise.

    `sampling_rate` 1 takes everybody: the plain Gaussian mechanism.
    """

    noise_multiplier: float  # standard deviation of the noise in units of the sensitivity
    sampling_rate: float


History = Mapping[Mechanism, int]  # steps of each
_Steps = tuple[tuple[Mechanism, int], ...]  # the same, sorted: the key of the cache


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

_ORDERS: Final = np.arange(2, 129)  # of the Renyi divergences of the rough bound

# So many mechanisms are priced as they are. Each takes about 0.1 s in each accountant, more in long histories.
_GROUPS: Final = 16
_GROUPS_OF_LONG: Final = 8
_LONG: Final = 20_000  # steps

_PRV_ERROR: Final = 0.01  # Opacus' default
_PRV_MESH_POINTS: Final = 1_500_000  # over all mechanisms, about a second; beyond it the error grows instead
_PLD_COARSEST: Final = 2e-3  # of the mesh; Google's default of 1e-4 takes ten times as long


def price(history: History, *, delta: float) -> Price:
    """Price a history: the larger of Opacus' PRV and Google's PLD, both upper bounds.

    Histories of more than 16 mechanisms (8 beyond 20,000 steps) are merged into so many first, which overstates.

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

    def history(thousandths: int) -> dict[Mechanism, int]:
        return merged(spent, {Mechanism(thousandths / 1000, sampling_rate): steps})

    def epsilon(thousandths: int) -> float:
        return _epsilon(history(thousandths), delta)

    lowest, highest = (round(bound * 1000) for bound in _NOISE)
    enough = lowest
    while enough < highest and _rough_epsilon(history(enough), delta) > target_epsilon:
        enough = min(2 * enough, highest)
    while epsilon(enough) > target_epsilon:
        if enough == highest:
            raise Refused(
                "epsilon_unreachable", f"no noise keeps to {target_epsilon:g} on top of what is spent"
            )
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
    _check_history({mechanism: at_most})

    def history(steps: int) -> dict[Mechanism, int]:
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
def _price(steps: _Steps, delta: float) -> Price:
    if not steps:
        return Price(epsilon=0.0, prv=0.0, pld=0.0, delta=delta)
    if _renyi_epsilon(steps, delta) > _MOST_RENYI_EPSILON:
        raise Refused("epsilon_too_large", f"above {_MOST_EPSILON:g}, which is not priced")
    pld = _or_nan(_pld_epsilon, steps, delta)
    if pld > _MOST_EPSILON:
        raise Refused("epsilon_too_large", f"above {_MOST_EPSILON:g}, which is not priced")
    prv = _or_nan(_prv_epsilon, steps, delta, _prv_error(steps, delta, pld))
    if not _agreed(prv, pld):
        raise Refused("accountants_disagree", f"PRV {prv:.4f}, PLD {pld:.4f}")
    return Price(epsilon=max(prv, pld), prv=prv, pld=pld, delta=delta)


def _agreed(prv: float, pld: float) -> bool:
    """Whether the two are within 0.02 + 1 % of the larger; never if one is not a number or infinite."""
    finite = math.isfinite(prv) and math.isfinite(pld)
    return finite and abs(prv - pld) <= _APART + _APART_RELATIVE * max(prv, pld)


def _or_nan(accountant: Callable[..., float], *arguments: Any) -> float:
    """Run an accountant in silence: its warnings are about its own mesh, its failure is a disagreement."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return max(0.0, float(accountant(*arguments)))
        except Exception:  # noqa: BLE001  (any failure of theirs means that the price is unknown)
            return math.nan


def _pld_epsilon(steps: _Steps, delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent  # noqa: PLC0415  (slow)
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    accountant = PLDAccountant(value_discretization_interval=_pld_spacing(steps, delta))
    for mechanism, count in steps:
        step = PoissonSampledDpEvent(mechanism.sampling_rate, GaussianDpEvent(mechanism.noise_multiplier))
        accountant.compose(SelfComposedDpEvent(step, count))
    return float(accountant.get_epsilon(delta))


def _pld_spacing(steps: _Steps, delta: float) -> float:
    """Return a mesh spacing that overstates epsilon by about 0.006 + 0.2 % at most, by a normal approximation.

    n steps on a mesh h add up to n h^2 / 4 to the variance S^2 of the privacy loss, and epsilon is about z S + S^2 / 2.
    """
    spread = min(1.0, math.sqrt(sum(count * math.exp(2 * min(0, _log_leakage(m))) for m, count in steps)))
    z = math.sqrt(-2 * math.log(delta))
    added = 8 * spread / (z + spread) * (0.006 + 0.002 * z * spread)
    return min(_PLD_COARSEST, math.sqrt(added / _total(steps)))


def _prv_epsilon(steps: _Steps, delta: float, error: float) -> float:
    accountant = _prv_accountant()()
    accountant.history = [(mechanism.noise_multiplier, mechanism.sampling_rate, count) for mechanism, count in steps]
    return float(accountant.get_epsilon(delta, eps_error=error))


@cache
def _prv_accountant() -> Any:
    """Return Opacus' PRV accountant on a mesh with the same spacing, but a size that suits the FFT: 4 times faster."""
    from opacus.accountants import PRVAccountant  # noqa: PLC0415  (imports torch: 4 s)
    from opacus.accountants.analysis.prv import Domain  # noqa: PLC0415
    from scipy.fft import next_fast_len  # noqa: PLC0415

    class FastPRVAccountant(PRVAccountant):
        def _get_domain(
            self, *, prvs: list[Any], num_self_compositions: list[int], eps_error: float, delta_error: float
        ) -> Any:
            mechanisms = (Mechanism(prv.noise_multiplier, prv.sample_rate) for prv in prvs)
            steps = tuple(zip(mechanisms, num_self_compositions, strict=True))
            spacing = _prv_spacing(steps, delta_error, eps_error)
            half = int(next_fast_len(math.ceil(_prv_radius(steps, delta_error) / spacing) + 1, real=True))
            # Opacus counts on an even size with 0 just below the middle.
            return Domain(-(half - 1) * spacing, half * spacing, 2 * half)

    return FastPRVAccountant


def _prv_error(steps: _Steps, delta: float, pld: float) -> float:
    """Return the error to allow PRV: 0.01, or more if the mesh would be too large, well within the disagreement."""
    delta_error = delta / 1000  # Opacus' default
    points = 2 * _prv_radius(steps, delta_error) / _prv_spacing(steps, delta_error, _PRV_ERROR) * len(steps)
    return min(_PRV_ERROR * max(1.0, points / _PRV_MESH_POINTS), _PRV_ERROR + 0.8 * _APART_RELATIVE * pld)


def _prv_spacing(steps: _Steps, delta_error: float, error: float) -> float:
    """Return the mesh spacing of Gopi et al. 2021, theorem 5.5, as in Opacus."""
    return error / math.sqrt(_total(steps) * math.log(12 / delta_error) / 2)


def _prv_radius(steps: _Steps, delta_error: float) -> float:
    """Return how far the mesh has to reach (Gopi et al. 2021, remark 5.6); a rougher bound only reaches farther."""
    alone = max(_renyi_epsilon(((mechanism, 1),), delta_error / (8 * _total(steps))) for mechanism, _ in steps)
    return max(_renyi_epsilon(steps, delta_error / 4), alone) + 3


def _rough_epsilon(history: History, delta: float) -> float:
    _check_delta(delta)
    return _renyi_epsilon(_simplified(history), delta)


def _renyi_epsilon(steps: _Steps, delta: float) -> float:
    """Bound epsilon by Renyi divergences of integer order: fast, up to a fifth too high and more beyond epsilon 20.

    Conversion: Canonne, Kamath, Steinke 2020 (arXiv:2004.00010), proposition 12.
    """
    if not steps:
        return 0.0
    divergence = sum(count * _renyi(mechanism) for mechanism, count in steps)
    bounds = divergence + np.log1p(-1 / _ORDERS) - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1)
    return max(0.0, float(np.min(bounds)))


@lru_cache(maxsize=4096)
def _renyi(mechanism: Mechanism) -> Array:
    """Return the Renyi divergence of a step at each order (Mironov, Talwar, Zhang 2019, arXiv:1908.10530, eq. 3.3)."""
    from scipy.special import gammaln, logsumexp  # noqa: PLC0415

    rate, variance = mechanism.sampling_rate, mechanism.noise_multiplier**2
    if rate == 1:
        return np.asarray(_ORDERS / (2 * variance))
    order, k = _ORDERS[:, None], np.arange(_ORDERS[-1] + 1)[None]
    rest = np.maximum(order - k, 0)
    log_binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(rest + 1)
    terms = log_binomial + rest * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * variance)
    return np.asarray(logsumexp(np.where(k <= order, terms, -np.inf), axis=1) / (_ORDERS - 1))


def _simplified(history: History) -> _Steps:
    """Return a history of few mechanisms that costs as much or more: the form that is priced."""
    kept = {mechanism: count for mechanism, count in history.items() if count}
    allowed = _GROUPS if sum(kept.values()) <= _LONG else _GROUPS_OF_LONG
    priced: dict[Mechanism, int] = {}
    for group in _groups(sorted(kept), allowed):
        worst = Mechanism(min(m.noise_multiplier for m in group), max(m.sampling_rate for m in group))
        priced[worst] = priced.get(worst, 0) + sum(kept[m] for m in group)
    return tuple(sorted(priced.items()))


def _groups(mechanisms: list[Mechanism], allowed: int) -> list[list[Mechanism]]:
    """Cut the mechanisms into so many groups of neighbours, always the widest along its wider side of log leakage."""
    if len(mechanisms) <= allowed:
        return [[mechanism] for mechanism in mechanisms]
    sides = np.array([(_log_noise_leakage(m), math.log(m.sampling_rate)) for m in mechanisms])
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


def _log_leakage(mechanism: Mechanism) -> float:
    """Return log of q sqrt(exp(1/sigma^2) - 1): over many steps epsilon goes with it (Bu et al. 2020, arXiv:1911.11607)."""
    return math.log(mechanism.sampling_rate) + _log_noise_leakage(mechanism)


def _log_noise_leakage(mechanism: Mechanism) -> float:
    inverse = mechanism.noise_multiplier**-2
    return (inverse + math.log1p(-math.exp(-inverse))) / 2  # log sqrt(exp(inverse) - 1) without overflow


def _total(steps: _Steps) -> int:
    return sum(count for _, count in steps)


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
