"""Site-level differential privacy at the server: one clip, one noise, one fixed denominator a round; and its price.

Unit: one site with all its patients. Adjacency: one site's update is replaced by zero. Trust: the server sees every
update in the clear; protected is what a site's data did to the published weights, against whoever sees those. This is
DP-FedAvg with a fixed denominator (McMahan et al. 2018, arXiv 1710.06963) and every site in every round.

Sharp edges. A site's update norm, its clipping and its losses are exact figures and no part of the guarantee: publish
none. Who answered a round is public here: a quorum must not depend on anything else of a site. Only averages that leave
the server cost budget: a round lost in a crash before its checkpoint was never published, and its repetition draws new
noise. Doubles are no real numbers: the attack of Mironov (2012) on their last bits is not closed.
"""

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from multimix.contract.messages import Weights
from multimix.errors import InputError
from multimix.privacy.noise import SecretStream, new_secret

if TYPE_CHECKING:
    from multimix.privacy.accountant import Price

NOISE_LIMIT: Final = 1.0  # above, a round's noise is longer than the longest step that all sites together can take
SITES_LIMIT: Final = 100  # below, no denominator makes noise that hides one site small beside what all sites say
EPSILON_LIMIT: Final = 10.0  # above, Ponomareva et al. 2023 (arXiv 2303.00654) call a guarantee weak to none
_ROUNDING: Final = 1e-12  # clip so much below C that rounding cannot lead above it
_LARGEST: Final = 1_000_000_000


@dataclass(frozen=True)
class SiteLevel:
    """Site-level DP of a whole run, fixed before it starts; InputError `site_level` where a number is impossible."""

    noise_multiplier: float  # z: standard deviation of the noise in a round's sum, in units of the clip norm
    clip_norm: float  # C: L2 bound of one site's whole update
    sites: int  # n: of the plan; the divisor of every round, whoever answers
    delta: float
    rounds: int
    epsilon: float  # of the whole run, at delta

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "clip_norm", "epsilon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError("site_level", f"Site-level {name} = {value}: give a finite number above 0.")
        if not 0 < self.delta < 1:
            raise InputError("site_level", f"Site-level delta = {self.delta}: give a number between 0 and 1.")
        for name in ("sites", "rounds"):
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise InputError(
                    "site_level", f"Site-level {name} = {getattr(self, name)}: give a whole number from 1."
                )


@dataclass(frozen=True)
class Noised:
    """The weights after a round, which are private; and whose update was cut, which is not: never publish it."""

    weights: Weights
    clipped: dict[str, bool]


def usual_delta(sites: int) -> float:
    """Return 1 / (10 n): ten times rarer than a failure that gives away one site of n."""
    return 1.0 / (10 * sites)


def average_privately(
    previous: Weights,
    received: Mapping[str, Weights],
    settings: SiteLevel,
    *,
    trained: Container[str] | None = None,
    normals: Callable[[int], np.ndarray] | None = None,
) -> Noised:
    """Return previous + (sum of clipped updates + N(0, (z C)^2)) / n, in float64, in the types of `previous`.

    `received` holds the sites that answered; arrays that a site did not send, a site that is not there and an update
    that is not finite or of another shape count as zero. `trained` names the arrays that the plan trains (None is all):
    the others stay as they are. `normals(count)` gives standard normals; a fresh secret a round unless a test says
    otherwise.

    Guarantees: independent of the order of sites; whatever one site sends moves the result by at most C / n before
    noise. InputError `too_many_sites` where more answer than the plan has.
    """
    if len(received) > settings.sites:
        raise InputError("too_many_sites", f"{len(received)} sites answered a site-level plan of {settings.sites}.")
    names = [name for name in sorted(previous) if trained is None or name in trained]
    origin = {name: previous[name] for name in names}
    moved = np.zeros(sum(value.size for value in origin.values()))
    clipped = {}
    for site in sorted(received):
        update, clipped[site] = clipped_update(origin, received[site], clip_norm=settings.clip_norm)
        moved += update
    noise = (normals or _fresh_normals)(moved.size)
    moved += settings.noise_multiplier * settings.clip_norm * noise
    moved /= settings.sites
    return Noised({**previous, **_added(origin, moved)}, clipped)


def clipped_update(origin: Weights, answer: Weights, *, clip_norm: float) -> tuple[np.ndarray, bool]:
    """Return answer - origin as one float64 vector of L2 norm at most `clip_norm`, and whether it was longer.

    Arrays that are missing count as zero. The whole vector is zero where an array has another shape or is no array of
    floating point numbers, or where the norm is not finite: an error here would tell what one site sent.
    """
    nothing = np.zeros(sum(value.size for value in origin.values()))
    parts = []
    for name, value in origin.items():
        sent = answer.get(name, value)
        if sent.shape != value.shape or sent.dtype.kind != "f":
            return nothing, False
        with np.errstate(invalid="ignore", over="ignore"):
            parts.append((sent.astype(np.float64) - value).ravel())
    update = np.concatenate(parts) if parts else nothing
    with np.errstate(invalid="ignore", over="ignore"):
        norm = float(np.sqrt(np.square(update).sum()))
    if not math.isfinite(norm):
        return nothing, False
    bound = clip_norm * (1 - _ROUNDING)
    return (update * (bound / norm), True) if norm > bound else (update, False)


def _fresh_normals(count: int) -> np.ndarray:
    """Draw from a secret that nobody keeps, so no noise is ever used twice, also by a run that is resumed."""
    return SecretStream(new_secret()).normals("site_level", 0, count)


def _added(origin: Weights, moved: np.ndarray) -> Weights:
    result: Weights = {}
    start = 0
    for name, value in origin.items():
        step = moved[start : start + value.size].reshape(value.shape)
        result[name] = (value.astype(np.float64) + step).astype(value.dtype)
        start += value.size
    return result


def calibrate_site_level(
    *, target_epsilon: float, delta: float, rounds: int, sites: int, clip_norm: float
) -> SiteLevel:
    """Return the least noise with which `rounds` rounds cost at most `target_epsilon` at `delta`; no subsampling."""
    from multimix.privacy.accountant import calibrate_noise  # noqa: PLC0415  (loads two accountants, slowly)

    # Refuses impossible numbers before the accountants see them.
    SiteLevel(1.0, clip_norm, sites, delta, rounds, target_epsilon)
    noise = calibrate_noise(target_epsilon=target_epsilon, delta=delta, sampling_rate=1.0, steps=rounds)
    whole = SiteLevel(noise, clip_norm, sites, delta, rounds, target_epsilon)
    return SiteLevel(noise, clip_norm, sites, delta, rounds, spent(whole, rounds).epsilon)


def spent(settings: SiteLevel, rounds_done: int) -> "Price":
    """Price the first `rounds_done` rounds; InputError `site_level` for more than were planned."""
    from multimix.privacy.accountant import Mechanism, price  # noqa: PLC0415  (as above)

    if not 0 <= rounds_done <= settings.rounds:
        raise InputError("site_level", f"{rounds_done} rounds of {settings.rounds} cannot be priced.")
    mechanism = Mechanism(settings.noise_multiplier, 1.0)
    return price({mechanism: rounds_done} if rounds_done else {}, delta=settings.delta)


def noise_to_signal(settings: SiteLevel, parameters: int) -> float:
    """Return z sqrt(P) / n: a round's root mean square noise norm over the longest step of the average, C.

    A step of length C needs every site to send an update of norm C in the same direction, so real signals are smaller.
    """
    return settings.noise_multiplier * math.sqrt(parameters) / settings.sites


def hollow_because(settings: SiteLevel, parameters: int) -> tuple[str, ...]:
    """Return in words why the guarantee is worth little or the model will be; empty where neither is plain."""
    ratio = noise_to_signal(settings, parameters)
    reasons = {
        f"the noise is {ratio:,.3g} times the longest step that all sites together can take": ratio > NOISE_LIMIT,
        f"{settings.sites} sites are fewer than the {SITES_LIMIT} that one site could be hidden among": (
            settings.sites < SITES_LIMIT
        ),
        f"delta {settings.delta:.2g} allows one site in {settings.sites} to be given away outright": (
            settings.delta * settings.sites >= 1
        ),
        f"epsilon {settings.epsilon:.3g} is above {EPSILON_LIMIT:g}": settings.epsilon > EPSILON_LIMIT,
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def hollow(settings: SiteLevel, parameters: int) -> bool:
    """Tell whether a run needs the coordinator's explicit consent: the claim protects little or ruins the model."""
    return bool(hollow_because(settings, parameters))


def explanation(settings: SiteLevel, parameters: int) -> str:
    """Return three sentences for the person who is about to start a run: what is claimed, its noise, its worth."""
    sure = 100 / (1 + math.exp(-min(settings.epsilon, 700.0)))
    claim = (
        f"Site-level privacy: over {settings.rounds} rounds each of {settings.sites} sites, with all its patients, has "
        f"epsilon {settings.epsilon:.3g} at delta {settings.delta:.2g} against whoever sees the model, but not against "
        f"this server: a guess at even odds about what a site contributed may become {sure:.4g} % sure."
    )
    ratio = noise_to_signal(settings, parameters)
    noise = (
        f"In every round the noise in the average has a norm of about {ratio:,.4g} C over {parameters:,} parameters "
        f"(C = {settings.clip_norm:g}, noise multiplier {settings.noise_multiplier:.4g}), "
        "where all sites together can move the model by at most 1 C."
    )
    reasons = hollow_because(settings, parameters)
    worth = (
        f"The claim is hollow, because {_listed(reasons)}: to run all the same, give --accept (dp-accept=true)."
        if reasons
        else "Noise, number of sites, epsilon and delta are within the limits for a meaningful claim."
    )
    return f"{claim}\n{noise}\n{worth}"


def _listed(reasons: tuple[str, ...]) -> str:
    return reasons[0] if len(reasons) == 1 else f"{', '.join(reasons[:-1])} and {reasons[-1]}"
