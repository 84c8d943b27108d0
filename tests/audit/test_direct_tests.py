"""Each direct test measures what it says, flags its own defect, and leaves those of others alone."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.audit.direct_tests import NUMBER_OF_TESTS, direct_tests, noise_of_parameters
from multimix.audit.observation import Observation
from multimix.errors import Refused

STEPS, CANARIES, SIGMA, RATE = 20, 2000, 1.5, 0.25
ALARM = 1e-3


def normals(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(STEPS, CANARIES)) * SIGMA


def seen(noise=None, *, drawn_at=RATE, took_part=None, worth=1.0, rate=RATE, sigma=SIGMA) -> Observation:
    """A run in which every second canary was in; a correct one but for what is given.

    `drawn_at` is the rate at which the lot took canaries, `took_part` who trained of those that it left out.
    """
    noise = normals() if noise is None else noise
    included = np.arange(noise.shape[1]) % 2 == 0
    sampled = included & (np.random.default_rng(1).random(noise.shape) < drawn_at)
    there = sampled if took_part is None else sampled | (included & took_part)
    return Observation(noise + worth * there, included, sampled, sigma, rate)


def flagged(observation: Observation) -> set[str]:
    return {test.name for test in direct_tests(observation, false_alarm_rate=ALARM) if test.flagged}


def one(name: str, observation: Observation):
    return next(test for test in direct_tests(observation, false_alarm_rate=ALARM) if test.name == name)


# --- what is flagged


@pytest.mark.parametrize("seed", range(5))
def test_a_correct_run_flags_nothing(seed):
    assert flagged(seen(normals(seed))) == set()


def test_weaker_noise_is_flagged_in_a_step_and_in_the_sum():
    assert flagged(seen(0.9 * normals())) == {"noise", "noise_sum"}


def test_stronger_noise_in_a_step_is_nobodys_loss():
    assert "noise" not in flagged(seen(1.1 * normals()))


def test_noise_repeated_in_the_next_step_is_flagged_as_such():
    assert flagged(seen(np.repeat(normals()[::2], 2, axis=0))) == {"noise_sum", "noise_lag_1"}


def test_noise_taken_back_in_a_later_step_is_flagged_in_the_sum_alone():
    half = normals()[: STEPS // 2]
    assert flagged(seen(np.concatenate([half, -half]))) == {"noise_sum"}


def test_noise_shared_by_a_coordinate_and_the_next_is_flagged_as_such():
    noise = normals()
    noise[:, 3::4] = noise[:, 1::4]  # of those that were not in: their coordinates are odd
    assert flagged(seen(noise)) == {"noise_coordinates"}


def test_a_patient_that_counts_for_more_is_flagged_where_it_was_in_the_step():
    assert flagged(seen(worth=1.3)) == {"sensitivity", "rate"}


def test_a_patient_that_counts_for_less_is_nobodys_loss():
    assert flagged(seen(worth=0.7)) == set()


def test_patients_whom_the_lot_left_out_are_flagged():
    also = np.random.default_rng(2).random((STEPS, CANARIES)) < 0.2
    assert flagged(seen(took_part=also)) == {"participation", "rate"}


def test_as_many_others_in_place_of_those_drawn_are_flagged_though_the_rate_is_right():
    others = Observation(
        seen().values, seen().included, np.roll(seen().sampled, 1, axis=0), SIGMA, RATE
    )  # the lot's steps are not those that they took part in
    assert flagged(others) == {"participation"}


def test_a_sum_that_moves_without_any_patient_is_flagged():
    noise = normals()
    noise[:, 1::2] += 0.06
    assert flagged(seen(noise)) == {"exclusion"}


def test_a_lot_that_draws_too_often_is_flagged_by_the_rate_alone():
    assert flagged(seen(drawn_at=0.4)) == {"rate"}


def test_a_lot_that_draws_too_seldom_is_nobodys_loss():
    assert flagged(seen(drawn_at=0.1)) == set()


# --- what is measured


def test_noise_is_measured_as_a_ratio_of_standard_deviations():
    """Values of plus and minus 0.75 are half of sigma 1.5; a ratio of n numbers has a deviation of 1 / sqrt(2 n)."""
    noise = np.full((STEPS, CANARIES), SIGMA / 2)
    noise[1::2] *= -1
    test = one("noise", seen(noise))
    assert (test.measured, test.expected, test.count) == (0.5, 1.0, STEPS * CANARIES // 2)
    assert test.z == pytest.approx((0.5 - 1) * sqrt(2 * STEPS * CANARIES / 2))


def test_noise_that_always_turns_round_has_correlation_minus_one():
    noise = np.full((STEPS, CANARIES), SIGMA)
    noise[1::2] *= -1
    test = one("noise_lag_1", seen(noise))
    assert test.measured == pytest.approx(-1)
    assert test.z == pytest.approx(-sqrt((STEPS - 1) * CANARIES / 2))


def test_sensitivity_and_participation_are_means_in_units_of_the_clip_norm():
    observation = seen(np.zeros((STEPS, CANARIES)), worth=3.0)
    drawn = int(observation.sampled.sum())
    sensitivity, participation = (one(name, observation) for name in ("sensitivity", "participation"))
    assert (sensitivity.measured, sensitivity.count) == (3.0, drawn)
    assert sensitivity.z == pytest.approx((3 - 1) * sqrt(drawn) / SIGMA)
    assert (participation.measured, participation.count) == (0.0, STEPS * CANARIES // 2 - drawn)


def test_the_rate_is_held_against_the_noise_and_the_lot_together():
    test = one("rate", seen(np.full((STEPS, CANARIES), 0.5), worth=0.0))
    spread = sqrt(SIGMA**2 + RATE * (1 - RATE))
    assert test.z == pytest.approx((0.5 - RATE) * sqrt(STEPS * CANARIES / 2) / spread)


@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_the_unit_of_the_noise_makes_no_difference(scale, seed):
    """Noise and sigma scaled alike, without canaries in any step, give the same tests."""
    noise = np.random.default_rng(seed).normal(size=(4, 100))
    first_run, second_run = (
        direct_tests(seen(noise * each, worth=0.0, sigma=each, rate=0.0), false_alarm_rate=ALARM)
        for each in (1.0, scale)
    )
    for first, second in zip(first_run[:4], second_run[:4], strict=True):  # those of the noise
        assert second.measured == pytest.approx(first.measured, rel=1e-9, abs=1e-9)


# --- edges


def test_with_everybody_in_every_step_there_is_nobody_to_have_been_left_out():
    observation = seen(drawn_at=1.0, rate=1.0)
    participation = one("participation", observation)
    assert (participation.count, participation.measured, participation.flagged) == (0, 0.0, False)
    assert flagged(observation) == set()


def test_with_no_canary_drawn_nothing_is_said_of_their_sensitivity():
    observation = seen(drawn_at=0.0, rate=0.01)
    sensitivity = one("sensitivity", observation)
    assert (sensitivity.count, sensitivity.flagged) == (0, False)
    assert flagged(observation) == set()


def test_no_noise_at_all_fails_every_test_of_the_noise():
    silent = seen(np.zeros((STEPS, CANARIES)))
    assert {"noise", "noise_sum", "noise_lag_1", "noise_coordinates"} <= flagged(silent)


@pytest.mark.parametrize(
    ("observation", "rate", "reason"),
    [
        (seen(normals()[:1]), ALARM, "audit_parameters"),
        (seen(), 0.0, "audit_parameters"),
        (seen(), 1.0, "audit_parameters"),
        (seen(sigma=0.0), ALARM, "audit_parameters"),
        (seen(normals() + np.nan), ALARM, "audit_not_finite"),
        (seen(normals() + np.inf), ALARM, "audit_not_finite"),
    ],
    ids=["one step", "no alarm", "always alarm", "no noise claimed", "not a number", "infinite"],
)
def test_what_has_no_answer_is_refused(observation, rate, reason):
    with pytest.raises(Refused) as caught:
        direct_tests(observation, false_alarm_rate=rate)
    assert caught.value.reason == reason


def test_every_test_has_its_share_of_the_false_alarms():
    """With the one of the parameters; a p-value just above the share does not flag."""
    observation = seen(worth=1.05)
    p = one("sensitivity", observation).p_value
    for rate, flags in ((NUMBER_OF_TESTS * p * 0.99, False), (NUMBER_OF_TESTS * p * 1.01, True)):
        found = {test.name: test.flagged for test in direct_tests(observation, false_alarm_rate=rate)}
        assert found["sensitivity"] is flags
    assert len(found) + 1 == NUMBER_OF_TESTS


# --- noise of the model's own parameters


def parameters(**changed: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    return {"weight": SIGMA * draw.normal(size=(30, 30)), "bias": SIGMA * draw.normal(size=10)} | changed


def test_noise_on_all_parameters_is_not_flagged():
    test = noise_of_parameters(parameters(), SIGMA, false_alarm_rate=ALARM)
    assert not test.flagged


def test_one_small_parameter_without_noise_is_flagged():
    test = noise_of_parameters(parameters(bias=np.zeros(2)), SIGMA, false_alarm_rate=ALARM)
    assert (test.measured, test.count, test.flagged) == (0.0, 2, True)


def test_the_p_value_of_the_parameters_pays_for_looking_at_all_of_them():
    """The larger one lies far above what is expected, so the other is the worst, and counts twice."""
    small = {"bias": np.full(10, SIGMA)}
    alone = noise_of_parameters(small, SIGMA, false_alarm_rate=ALARM).p_value
    both = noise_of_parameters(small | {"weight": np.full(100, 2 * SIGMA)}, SIGMA, false_alarm_rate=ALARM).p_value
    assert both == pytest.approx(min(1.0, 2 * alone))


@pytest.mark.parametrize(("values", "sigma"), [({}, SIGMA), ({"bias": np.array([np.nan])}, SIGMA), (parameters(), 0.0)])
def test_parameters_that_show_nothing_are_refused(values, sigma):
    with pytest.raises(Refused, match="audit_"):
        noise_of_parameters(values, sigma, false_alarm_rate=ALARM)
