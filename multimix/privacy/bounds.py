"""Three upper bounds on the epsilon of the same steps: Opacus' PRV, Google's PLD, and a rough one in microseconds.

`multimix.privacy.accountant` compares the first two; the third sizes their meshes and starts searches. Meshes are as
coarse as the accountants' disagreement allows, since their cost goes with the points: an error on a mesh is part of the
bound that comes out, so a coarser one is dearer for the patient's budget and never too cheap.
"""

import math
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Row = tuple[float, float, int]  # noise multiplier, sampling rate, steps; as in a history of Opacus
Rows = tuple[Row, ...]

_ORDERS: Final = np.arange(2, 129)  # of the Renyi divergences
_PRV_ERROR: Final = 0.01  # Opacus' default
_PRV_DELTA_ERROR: Final = 1 / 1000  # of delta; Opacus' default
_PRV_MESH_POINTS: Final = 1_500_000  # over all rows, about a second; beyond it the error grows instead
_PRV_MOST_RELATIVE_ERROR: Final = 0.008  # with 0.01 well within the 0.02 + 1 % that the accountants may be apart
_PLD_COARSEST: Final = 2e-3  # mesh; Google's default of 1e-4 takes ten times as long


def pld_epsilon(rows: Rows, delta: float) -> float:
    """Return the bound of Google's accountant of privacy loss distributions, for adding and removing a patient."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent  # noqa: PLC0415  (slow)
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    accountant = PLDAccountant(value_discretization_interval=_pld_spacing(rows, delta))
    for noise_multiplier, rate, count in rows:
        step = PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier))
        accountant.compose(SelfComposedDpEvent(step, count))
    return float(accountant.get_epsilon(delta))


def prv_epsilon(rows: Rows, delta: float, *, about: float) -> float:
    """Return the bound of Opacus' accountant of privacy loss random variables; it includes its mesh's error.

    The error is 0.01, and more in long histories: at most 0.01 + 0.8 % of `about`, which is epsilon approximately.
    """
    accountant = _prv_accountant()()
    accountant.history = list(rows)
    return float(accountant.get_epsilon(delta, eps_error=_prv_error(rows, delta, about)))


def renyi_epsilon(rows: Rows, delta: float) -> float:
    """Bound epsilon by Renyi divergences of integer orders: up to a fifth too high, and more beyond epsilon 20.

    Conversion: Canonne, Kamath, Steinke 2020 (arXiv:2004.00010), proposition 12.
    """
    if not rows:
        return 0.0
    divergence = sum(count * _renyi(noise_multiplier, rate) for noise_multiplier, rate, count in rows)
    bounds = divergence + np.log1p(-1 / _ORDERS) - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1)
    return max(0.0, float(np.min(bounds)))


def log_leakage(noise_multiplier: float) -> float:
    """Return log sqrt(exp(1/sigma^2) - 1).

    Over many steps of rate q epsilon goes with q times the root (Bu et al. 2020, arXiv:1911.11607).
    """
    inverse = noise_multiplier**-2
    return (inverse + math.log1p(-math.exp(-inverse))) / 2  # without overflow


@lru_cache(maxsize=4096)
def _renyi(noise_multiplier: float, rate: float) -> npt.NDArray[np.float64]:
    """Return the divergence of a step at each order (Mironov, Talwar, Zhang 2019, arXiv:1908.10530, section 3.3)."""
    from scipy.special import gammaln, logsumexp  # noqa: PLC0415

    variance = noise_multiplier**2
    if rate == 1:
        return np.asarray(_ORDERS / (2 * variance))
    order, k = _ORDERS[:, None], np.arange(_ORDERS[-1] + 1)[None]
    rest = np.maximum(order - k, 0)
    log_binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(rest + 1)
    terms = log_binomial + rest * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * variance)
    return np.asarray(logsumexp(np.where(k <= order, terms, -np.inf), axis=1) / (_ORDERS - 1))


def _pld_spacing(rows: Rows, delta: float) -> float:
    """Return a mesh spacing that overstates epsilon by 0.006 + 0.2 % at most, by a normal approximation.

    n steps on a mesh h add n h^2 / 4 to the variance S^2 of the privacy loss, and epsilon is about z S + S^2 / 2.
    """
    variance = sum(count * math.exp(2 * min(0.0, log_leakage(noise) + math.log(rate))) for noise, rate, count in rows)
    spread, z = min(1.0, math.sqrt(variance)), math.sqrt(-2 * math.log(delta))
    added = 8 * spread / (z + spread) * (0.006 + 0.002 * z * spread)
    return min(_PLD_COARSEST, math.sqrt(added / _total(rows)))


@cache
def _prv_accountant() -> Any:
    """Return Opacus' accountant with a mesh whose size suits the FFT and with all mechanisms in one transform back.

    Loss, mesh spacing and epsilon are Opacus' own; up to 5 times as fast, and the same to 4 digits (tested).
    """
    from opacus.accountants import PRVAccountant  # noqa: PLC0415  (imports torch: 4 s)
    from opacus.accountants.analysis import prv as opacus  # noqa: PLC0415
    from scipy.fft import irfft, next_fast_len, rfft  # noqa: PLC0415

    class FastPRVAccountant(PRVAccountant):
        def _get_dprv(self, eps_error: float, delta_error: float) -> Any:
            rows = tuple(self.history)
            spacing = _prv_spacing(rows, delta_error, eps_error)
            half = int(next_fast_len(math.ceil(_prv_radius(rows, delta_error) / spacing) + 1, real=True))
            spectrum: Any = 1.0
            shift = 0.0
            for noise_multiplier, rate, count in rows:
                reach = _prv_radius_alone(noise_multiplier, rate, delta_error / _total(rows))
                part = min(half, math.ceil(reach / spacing) + 1)
                step = discretized(opacus.PoissonSubsampledGaussianPRV(rate, noise_multiplier), spacing, part)
                spectrum *= rfft(np.pad(step.pmf, half - part)) ** count
                shift += count * step.domain.shifts
            # Entry half - 1 is loss 0: the sum of n entries is (n - 1) (half - 1) too far, on a circle of 2 half.
            composed = np.roll(irfft(spectrum), -(_total(rows) - 1) * (half - 1) % (2 * half))
            return opacus.DiscretePRV(pmf=composed, domain=mesh(spacing, half).shift_right(shift))

    def discretized(loss: Any, spacing: float, half: int) -> Any:
        domain = mesh(spacing, half)
        return opacus.discretize(opacus.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)

    def mesh(spacing: float, half: int) -> Any:
        return opacus.Domain(-(half - 1) * spacing, half * spacing, 2 * half)

    return FastPRVAccountant


def _prv_error(rows: Rows, delta: float, about: float) -> float:
    delta_error = delta * _PRV_DELTA_ERROR
    points = len(rows) * 2 * _prv_radius(rows, delta_error) / _prv_spacing(rows, delta_error, _PRV_ERROR)
    return min(_PRV_ERROR * max(1.0, points / _PRV_MESH_POINTS), _PRV_ERROR + _PRV_MOST_RELATIVE_ERROR * about)


def _prv_spacing(rows: Rows, delta_error: float, error: float) -> float:
    """Return the mesh spacing of Gopi et al. 2021 (arXiv:2106.02848), theorem 5.5, as in Opacus."""
    return error / math.sqrt(_total(rows) * math.log(12 / delta_error) / 2)


def _prv_radius(rows: Rows, delta_error: float) -> float:
    """Return how far the mesh has to reach (the same, remark 5.6): a rougher bound only makes it reach farther."""
    alone = (_prv_radius_alone(noise, rate, delta_error / _total(rows)) for noise, rate, _ in rows)
    return max(renyi_epsilon(rows, delta_error / 4) + 3, *alone)


def _prv_radius_alone(noise_multiplier: float, rate: float, delta_error: float) -> float:
    return renyi_epsilon(((noise_multiplier, rate, 1),), delta_error / 8) + 3


def _total(rows: Rows) -> int:
    return sum(count for _, _, count in rows)
