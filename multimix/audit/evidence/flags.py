"""What the figures of a measurement show by themselves: flags and verdicts that are filed beside them are not believed.

A measurement reaches a bundle as a file. Whoever wants it to look better can turn a flag and leave the figures, or
loosen what they are held against; so each flag is derived again here, and the worse of both counts.
"""

from typing import Final

from multimix.audit.attacks import Attack, MembershipResult
from multimix.audit.direct_tests import NUMBER_OF_TESTS
from multimix.audit.empirical import FALSE_ALARM_RATE, Bound, EmpiricalResult, NeighbourResult, Test
from multimix.audit.estimators import (
    Guesses,
    fdp_approximate_epsilon,
    fdp_gaussian_epsilon,
    numbers_of_guesses,
    steinke_epsilon,
)
from multimix.audit.membership import permitted_auc, permitted_tpr
from multimix.audit.neighbours import TOLERANCE
from multimix.errors import Refused

_EPSILON: Final = {
    "steinke": steinke_epsilon,
    "fdp_approximate": fdp_approximate_epsilon,
    "fdp_gaussian": fdp_gaussian_epsilon,
}
_GAUSSIAN: Final = "bound_fdp_gaussian"


def is_flagged(result: EmpiricalResult, test: Test) -> bool:
    """Whether a direct test speaks against the trainer: by its flag, or by its p-value at its share of false alarms."""
    return test.flagged or not test.p_value >= result.false_alarm_rate / 2 / NUMBER_OF_TESTS


def is_above(bound: Bound) -> bool:
    """Whether a lower bound lies above its claim, with the confidence that is shown; a flag takes far more."""
    return not bound.epsilon <= bound.claimed_epsilon


def bound_flagged(result: EmpiricalResult, bound: Bound) -> bool:
    """Whether a lower bound speaks against the trainer: by its flag, or by its counts at its share of false alarms.

    The counts are those of the number of guesses that showed most with the confidence shown; another number may show
    more at the false-alarm rate. So they can add a flag, and not take one off.
    """
    if bound.flagged or not is_above(bound):
        return bound.flagged
    try:
        counts = Guesses(result.canaries, bound.guesses, bound.correct)
        share = result.false_alarm_rate / 2 / len(_EPSILON) / len(numbers_of_guesses(result.canaries))
        return _EPSILON[bound.method](counts, delta=bound.delta, significance=share) > bound.claimed_epsilon
    except Refused:
        return True  # no audit writes such counts


def effect_within(found: NeighbourResult) -> bool:
    """Whether no patient moved the sum by more than the clip norm."""
    return found.sensitivity <= 1 + _tolerance(found)


def leakage_within(found: NeighbourResult) -> bool:
    """Whether no patient changed what the others add."""
    return found.leakage <= _tolerance(found)


def neighbours_flagged(found: NeighbourResult) -> bool:
    """Whether the comparison of neighbours speaks against the trainer: by its flag, or by its figures."""
    return found.flagged or not (effect_within(found) and leakage_within(found))


def flags_of(result: EmpiricalResult) -> tuple[str, ...]:
    """Return what speaks against the trainer, filed as such or not."""
    found = [f"bound_{bound.method}" for bound in result.bounds if bound_flagged(result, bound)]
    found += [test.name for test in result.tests if is_flagged(result, test)]
    return (*found, *(["neighbours"] if neighbours_flagged(result.neighbours) else []))


def hidden_flags(result: EmpiricalResult) -> tuple[str, ...]:
    """Return what speaks against the trainer by its figures, and was filed as if it did not."""
    return tuple(flag for flag in flags_of(result) if flag not in result.flags)


def is_lenient(result: EmpiricalResult) -> bool:
    """Whether an audit was told to flag less than an audit of this software does unless told."""
    return not (result.false_alarm_rate >= FALSE_ALARM_RATE and result.neighbours.tolerance <= TOLERANCE)


def flag_in_words(flag: str) -> str:
    """Return a flag's name, with what it presumes."""
    return flag.replace("_", " ") + (", which presumes a leak like a Gaussian's" if flag == _GAUSSIAN else "")


def coarse(result: EmpiricalResult) -> EmpiricalResult:
    """Return an audit without the exact figures of its neighbours, as it is filed.

    They are exact functions of real patients, and a bundle leaves the site. What is within the bound is filed as the
    bound itself, 1 of the effect and 0 of the leakage; what is beyond it is a fault of the software, and stays.
    """
    found = result.neighbours
    changes = {
        "sensitivity": 1.0 if effect_within(found) else found.sensitivity,
        "leakage": 0.0 if leakage_within(found) else found.leakage,
    }
    return result.model_copy(update={"neighbours": found.model_copy(update=changes)})


def beats_claim(result: MembershipResult, attack: Attack) -> bool:
    """Whether an attack surely does better than (epsilon, delta) permits any, by AUC or by what it finds.

    Raises:
        InputError: as `permitted_auc` and `permitted_tpr`.
    """
    by_area = not attack.auc_interval[0] <= permitted_auc(result.epsilon, result.delta)
    most = permitted_tpr(attack.fpr_interval[1], result.epsilon, result.delta)
    return by_area or not attack.tpr_interval[0] <= most


def _tolerance(found: NeighbourResult) -> float:
    """Return what counts as rounding: no more than this software allows."""
    return min(found.tolerance, TOLERANCE)
