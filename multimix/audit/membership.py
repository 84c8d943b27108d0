"""Membership inference: can a patient of the training set be told from one who was not, by the released model?

Two attacks give a score per patient, higher for a likelier member: minus the loss (Yeom et al. 2018, arXiv 1709.01604)
and a likelihood ratio against shadow models (LiRA; Carlini et al. 2022, arXiv 2112.03570). Figures of an attack stand
beside what (epsilon, delta) permits. `multimix.audit.membership_scores` makes the scores from a model.

**These are exact figures about real patients.** They are not differentially private and no ledger accounts for them:
scores and figures stay with the auditor unless the officer releases them.

The unit is the patient. `permitted_tpr` and `permitted_auc` bound these attacks if each patient was a member by an
independent coin. Members and others that differ otherwise (another year, another hospital) can be told apart without
any leak: then a figure above the bound is no proof, and one below it still says how well the attack did. An attack
that fails proves nothing: a better one may exist.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from multimix.errors import InputError
from multimix.randomness import derive_seed, stream

if TYPE_CHECKING:
    from multimix.network import MultiMixNetwork

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]

ENOUGH_OTHERS: Final = 100  # one false positive is then 1 %
FEWEST_SHADOWS: Final = 4  # two with and two without each patient: the least that has a variance
SHADOWS_FOR_OWN_VARIANCE: Final = 64  # half with each patient; with fewer all share one (Carlini et al., section VI)
_LEAST_VARIANCE: Final = 1e-12  # where shadows agree to the last digit
_NORMAL_QUANTILE: Final = 1.959963984540054  # two-sided 95 %
_TAIL: Final = 0.025


@dataclass(frozen=True)
class AttackFigures:
    """How well scores tell members from others; intervals are of 95 %, for patients drawn independently."""

    members: int
    others: int
    auc: float
    auc_interval: Interval
    tpr: float  # members above the threshold
    tpr_interval: Interval  # Clopper-Pearson
    fpr: float  # others above the threshold; at most 0.01
    fpr_interval: Interval  # Clopper-Pearson
    note: str  # empty if there is nothing to add


def attack_figures(member_scores: Floats, other_scores: Floats) -> AttackFigures:
    """Return AUC and true positive rate at 1 % false positives of scores [members] and [others].

    The threshold is the smallest score with at most 1 % of the others above it. With fewer than 100 others that is
    none of them, and `note` says so.

    Raises:
        InputError: `scores_not_finite`; `patients_missing` if there is no member or no other;
            `scores_shape` if they are not two lists.
    """
    members, others = _checked(member_scores), _checked(other_scores)
    if not members.size or not others.size:
        raise InputError("patients_missing", "There is no member or no other patient to tell apart; give both.")
    auc = _auc(members, others)
    threshold = np.sort(others)[::-1][len(others) // 100]
    found, false = int((members > threshold).sum()), int((others > threshold).sum())
    few = len(others) < ENOUGH_OTHERS
    return AttackFigures(
        members=len(members),
        others=len(others),
        auc=auc,
        auc_interval=_auc_interval(auc, min(len(members), len(others))),
        tpr=found / len(members),
        tpr_interval=clopper_pearson(found, len(members)),
        fpr=false / len(others),
        fpr_interval=clopper_pearson(false, len(others)),
        note=f"Fewer than {ENOUGH_OTHERS} others: the threshold lets none of them through, not 1 %." if few else "",
    )


def _checked(scores: Floats) -> Floats:
    """Return a list of scores as float64, or refuse."""
    checked = np.asarray(scores, dtype=np.float64)
    if checked.ndim != 1:
        raise InputError("scores_shape", f"Scores have {checked.ndim} dimensions; give one score per patient.")
    _require_finite(checked)
    return checked


def _require_finite(scores: Floats) -> None:
    """Refuse a model that diverged: a comparison with NaN is false, which would count as a failed attack."""
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise InputError("scores_not_finite", f"{wrong} of {scores.size} scores are infinite or no number.")


def _auc(members: Floats, others: Floats) -> float:
    """Return P(member > other) + P(equal) / 2 (Mann and Whitney 1947, doi:10.1214/aoms/1177730491)."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, members, "left") + np.searchsorted(ranked, members, "right")
    return float(below.sum()) / (2 * members.size * others.size)


def _auc_interval(auc: float, smaller_group: int) -> Interval:
    """Return Wilson's interval (1927, doi:10.1080/01621459.1927.10502953) with the variance A (1 - A) / smaller group.

    No distributions of scores give a larger one (Birnbaum and Klose 1957, doi:10.1214/aoms/1177706883), so the interval
    is somewhat wide; unlike DeLong's it has a width at an AUC of 1.
    """
    spread = _NORMAL_QUANTILE**2 / smaller_group
    middle = (auc + spread / 2) / (1 + spread)
    half = math.sqrt(spread * auc * (1 - auc) + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def clopper_pearson(successes: int, trials: int) -> Interval:
    """Return the exact 95 % interval of a proportion (1934, doi:10.1093/biomet/26.4.404)."""
    failures = trials - successes
    low = float(betaincinv(successes, failures + 1, _TAIL)) if successes else 0.0
    return low, float(betaincinv(successes + 1, failures, 1 - _TAIL)) if failures else 1.0


# --- what a guarantee permits


def permitted_tpr(fpr: float, epsilon: float, delta: float) -> float:
    """Return the largest true positive rate at a false positive rate that (epsilon, delta) permits any attack.

    min(e^eps fpr + delta, 1 - e^-eps (1 - fpr - delta)), at most 1 (Kairouz, Oh, Viswanath 2015, arXiv 1311.0776);
    1 for an infinite epsilon.

    Raises:
        InputError: `rate_invalid`, `guarantee_invalid` outside of [0, 1] and epsilon >= 0.
    """
    if not 0 <= fpr <= 1:
        raise InputError("rate_invalid", f"A false positive rate of {fpr} is not in [0, 1].")
    _require_guarantee(epsilon, delta)
    if math.isinf(epsilon):
        return 1.0
    # e^eps fpr without overflow; 0 stays 0 however large epsilon is.
    grown = math.exp(min(0.0, epsilon + math.log(fpr))) if fpr else 0.0
    return min(1.0, grown + delta, 1 - math.exp(-epsilon) * (1 - fpr - delta))


def permitted_auc(epsilon: float, delta: float) -> float:
    """Return the largest AUC that (epsilon, delta) permits: the area under `permitted_tpr`.

    The false negative rates are those of delta = 0, both axes shrunk by 1 - delta: 1 - (1 - delta)^2 / (1 + e^eps).

    Raises:
        InputError: `guarantee_invalid`.
    """
    _require_guarantee(epsilon, delta)
    inverse = math.exp(-epsilon)
    return 1 - (1 - delta) ** 2 * inverse / (1 + inverse)


def _require_guarantee(epsilon: float, delta: float) -> None:
    if not (epsilon >= 0 and 0 <= delta <= 1):  # also refuses NaN
        raise InputError("guarantee_invalid", f"epsilon {epsilon} is not >= 0 or delta {delta} not in [0, 1].")


# --- the likelihood-ratio attack


@dataclass(frozen=True, eq=False)
class Shadows:
    """Scores of every patient under models trained on random halves."""

    scores: Floats  # [models, statistics, patients]; NaN where a patient has no such statistic
    trained_on: Bools  # [models, patients]


def choose_halves(patients: int, models: int, seed: int) -> Bools:
    """Return which patients each shadow model trains on, [models, patients].

    Models 2k and 2k + 1 are a random half and the rest, so that each patient is in exactly half of the models.

    Raises:
        InputError: `shadows_too_few` below 4 models; `shadows_odd`.
    """
    if models < FEWEST_SHADOWS:
        raise InputError("shadows_too_few", f"{models} shadow models; train at least {FEWEST_SHADOWS}.")
    if models % 2:
        raise InputError("shadows_odd", f"{models} shadow models; train an even number, since they come in pairs.")
    halves = [
        stream("membership halves", seed, pair).permutation(patients) < patients // 2 for pair in range(models // 2)
    ]
    return np.stack([side for half in halves for side in (half, ~half)])


def run_shadows(
    train: Callable[[Bools, int], "MultiMixNetwork"],
    score: Callable[["MultiMixNetwork"], Floats],
    *,
    patients: int,
    models: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Shadows:
    """Train shadow models one after another and score all patients with each; only scores are kept.

    `train` takes the patients to train on, bool [patients], and a seed; it must train as the target was trained.
    `score` returns [statistics, patients] of a model, as `PatientLosses.statistics` does. The same seed asks for the
    same halves and seeds; `progress` hears the number of models done.

    Raises:
        InputError: as `choose_halves`.
    """
    trained_on = choose_halves(patients, models, seed)
    scores: list[Floats] = []
    for model, chosen in enumerate(trained_on):
        scores.append(score(train(chosen.copy(), derive_seed("membership shadow", seed, model))))
        if progress:
            progress(model + 1)
    return Shadows(np.stack(scores), trained_on)


def joint_likelihood_ratio_scores(target: Floats, shadows: Shadows) -> Floats:
    """Return the sum over statistics of the log likelihood ratios [patients], of target [statistics, patients].

    Statistics count as independent, as the queries do in section VI of the paper. One that is NaN in the target and in
    all shadow models says nothing about the patient.

    Raises:
        InputError: `scores_shape`; `scores_not_finite` if a statistic is NaN in some models only; `patients_missing` if
            a patient has no statistic; and as `likelihood_ratio_scores`.
    """
    if shadows.scores.shape[1:] != target.shape:
        raise InputError("scores_shape", "Target and shadow models were scored on other patients or statistics.")
    missing = np.isnan(target) & np.isnan(shadows.scores).all(axis=0)
    if missing.all(axis=0).any():
        raise InputError("patients_missing", "Some patients have no statistic; leave them out before.")
    total = np.zeros(target.shape[1])
    for statistic, present in enumerate(~missing):
        if present.any():
            total[present] += likelihood_ratio_scores(
                target[statistic, present], shadows.scores[:, statistic, present], shadows.trained_on[:, present]
            )
    return total


def likelihood_ratio_scores(target: Floats, shadows: Floats, trained_on: Bools) -> Floats:
    """Return log p(score | member) - log p(score | not) [patients]: the online attack (algorithm 1 of the paper).

    Args:
        target: [patients] scores under the attacked model, roughly normal: logit-scaled confidence, minus log loss.
        shadows: [models, patients] under the shadow models.
        trained_on: [models, patients], whether a model was trained on a patient.

    A patient's two normals have means of their own. With fewer than 64 models the variance within patients is shared
    by all, one for members and one for others.

    Raises:
        InputError: `scores_shape`, `scores_not_finite`; `shadows_too_few` unless two models with and two without
            every patient.
    """
    target = _checked(target)
    if target.shape != shadows.shape[1:] or shadows.shape != trained_on.shape:
        raise InputError("scores_shape", "Scores of the target, of the shadows and the memberships differ in shape.")
    _require_finite(shadows)
    times = trained_on.sum(axis=0)
    least = np.minimum(times, len(shadows) - times).min(initial=len(shadows))
    own_variance = bool(least >= SHADOWS_FOR_OWN_VARIANCE // 2)
    with_patient = _log_density(target, shadows, trained_on, own_variance=own_variance)
    return with_patient - _log_density(target, shadows, ~trained_on, own_variance=own_variance)


def _log_density(target: Floats, shadows: Floats, chosen: Bools, *, own_variance: bool) -> Floats:
    """Return the log density, up to a constant, of each patient's target under its normal of the chosen models."""
    count = chosen.sum(axis=0)
    if (count < FEWEST_SHADOWS // 2).any():
        raise InputError("shadows_too_few", "A patient needs two shadow models trained on it and two that were not.")
    mean = np.where(chosen, shadows, 0.0).sum(axis=0) / count
    squares = np.where(chosen, (shadows - mean) ** 2, 0.0).sum(axis=0)
    shared = squares.sum() / (count - 1).sum() if count.size else 0.0
    variance = np.maximum(squares / (count - 1) if own_variance else shared, _LEAST_VARIANCE)
    density: Floats = -((target - mean) ** 2) / (2 * variance) - np.log(variance) / 2
    return density
