"""Each direct test measures what it says, flags its own defect, and leaves those of others alone."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from multimix.audit.direct_tests import NUMBER_OF_TESTS, _Judge, direct_tests, noise_tests
from multimix.audit.observation import Observation
from multimix.errors import Refused
from multimix.privacy.noise import SecretStream

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
    """With the four of steps with nobody in them; a p-value just above the share does not flag."""
    observation = seen(worth=1.05)
    p = one("sensitivity", observation).p_value
    for rate, flags in ((NUMBER_OF_TESTS * p * 0.99, False), (NUMBER_OF_TESTS * p * 1.01, True)):
        found = {test.name: test.flagged for test in direct_tests(observation, false_alarm_rate=rate)}
        assert found["sensitivity"] is flags
    assert len(found) + len(noise_tests(parameters(), SIGMA, false_alarm_rate=rate)) == NUMBER_OF_TESTS


# --- noise of the model's own parameters


SHAPES = {"weight": (30, 30), "bias": (10,), "head": (300,)}
ALL = 4 * (30 * 30 + 10 + 300)  # numbers in four steps


def parameters(seed: int = 3, **changed: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: SIGMA * draw.normal(size=(4, *shape)) for name, shape in SHAPES.items()} | changed


def of_noise(nobody, rate: float = ALARM) -> dict:
    return {test.name: test for test in noise_tests(nobody, SIGMA, false_alarm_rate=rate)}


def flagged_noise(nobody) -> set[str]:
    return {name for name, test in of_noise(nobody).items() if test.flagged}


@pytest.mark.parametrize("seed", range(5))
def test_fresh_noise_on_all_parameters_is_not_flagged(seed):
    assert flagged_noise(parameters(seed)) == set()


def test_the_noise_tests_alarm_no_more_often_than_their_share():
    """Of 300 correct runs with 12 tests of 10 % in all each flags 300 / 120 = 2.5 times; 10 or more have p 0.0003."""
    runs = [of_noise(parameters(seed), rate=0.1) for seed in range(300)]
    assert all(sum(run[name].flagged for run in runs) < 10 for name in runs[0])


def test_one_small_parameter_without_noise_is_flagged():
    test = of_noise(parameters(bias=np.zeros((4, 2))))["noise_parameters"]
    assert (test.measured, test.count, test.flagged) == (0.0, 8, True)


def test_one_step_without_noise_is_flagged():
    nobody = parameters()
    for values in nobody.values():
        values[2] = 0
    assert of_noise(nobody)["noise_parameters"].measured == 0.0


def test_the_p_value_of_the_parameters_pays_for_looking_at_all_of_them():
    """Eight numbers of sigma / 10 have a chi-squared of 0.08; looked at were three parameters and four steps."""
    small = np.full((4, 2), SIGMA / 10) * [[1, -1]]
    test = of_noise(parameters(bias=small))["noise_parameters"]
    assert test.p_value == pytest.approx(7 * stats.chi2.cdf(0.08, 8))


def test_a_parameter_whose_noise_returns_in_another_step_is_flagged():
    nobody = parameters()
    nobody["bias"][3] = -2 * nobody["bias"][0]
    test = of_noise(nobody)["noise_steps"]
    assert flagged_noise(nobody) == {"noise_steps"}
    assert (test.measured, test.count) == (pytest.approx(-1), 10)


def test_the_p_value_of_a_correlation_is_exact_for_a_few_numbers():
    """Of 3 numbers a correlation about zero is uniform on -1 to 1, so 0.8 or more has p 0.2, before it pays for all."""
    judge = _Judge(0.5)
    test = judge.alike("any", np.array([1.0, 0.0, 0.0]), np.array([0.8, 0.6, 0.0]))
    assert (test.measured, test.p_value, test.count) == (pytest.approx(0.8), pytest.approx(0.2), 3)


def test_one_number_is_never_called_alike():
    assert _Judge(0.5).alike("any", np.array([2.0]), np.array([2.0])).p_value == 1.0


def test_parameters_that_begin_with_the_same_draws_are_flagged_however_they_are_scaled():
    nobody = parameters()
    nobody["bias"] = 3 * nobody["weight"].reshape(4, -1)[:, :10]
    assert flagged_noise(nobody) == {"noise_tensors"}


def test_noise_tiled_over_the_parameters_is_flagged_within_and_between_them():
    """16 numbers, each time a little louder, so that none repeats; by those 16 further on they correlate."""
    tiled = np.stack([np.resize(SIGMA * np.random.default_rng(step).normal(size=16), 1210) for step in range(4)])
    tiled *= 1 + 1e-6 * np.arange(1210)
    weight, bias, head = np.split(tiled, [900, 910], axis=1)
    nobody = {"weight": weight.reshape(4, 30, 30), "bias": bias, "head": head}
    assert "noise_tensors" in flagged_noise(nobody)
    assert "noise_repeats" not in flagged_noise(nobody)


def test_the_largest_correlation_is_found_at_its_lag():
    """1 and 1 lie 5 apart among zeros: of sum of squares 2 they correlate 1 / 2, and nowhere else."""
    values = np.zeros(40)
    values[[7, 12]] = 1.0
    test = _Judge(0.5).lags("any", values)
    assert test.measured == pytest.approx(0.5)
    assert test.z == pytest.approx(0.5 * sqrt(40))
    assert test.p_value == pytest.approx(39 * 2 * stats.norm.sf(0.5 * sqrt(40)))


def test_a_lag_does_not_wrap_round():
    """First and last of 40: 39 apart, not 1."""
    values = np.zeros(40)
    values[[0, 39]] = [1.0, -1.0]
    assert _Judge(0.5).lags("any", values).measured == pytest.approx(-0.5)


def test_the_same_numbers_in_another_order_and_with_other_signs_are_flagged_as_repeats():
    nobody = parameters()
    nobody["head"][1] = -np.random.default_rng(9).permutation(nobody["weight"][0].ravel())[:300]
    test = of_noise(nobody)["noise_repeats"]
    assert flagged_noise(nobody) == {"noise_repeats"}
    assert (test.measured, test.count) == (300, ALL)


def test_one_number_that_occurs_twice_is_one_repeat_and_too_many_of_a_few_thousand():
    """Expected are n^2 / 2^52 = 5e-9 of them."""
    nobody = parameters()
    nobody["bias"][0, 0] = nobody["head"][3, 7]
    test = of_noise(nobody)["noise_repeats"]
    assert (test.measured, test.flagged) == (1, True)
    assert test.p_value == pytest.approx(ALL**2 / 2**52, rel=1e-6)


def test_a_million_numbers_of_a_secret_do_not_repeat():
    noise = SecretStream(b"s" * 32).normals("noise", 0, 1_000_000) * 1.1 * 0.5 / 37.3
    assert _Judge(0.5).repeats("any", noise).measured == 0


def test_silence_fails_every_test_of_the_noise():
    silent = {name: np.zeros((4, *shape)) for name, shape in SHAPES.items()}
    assert flagged_noise(silent) == {"noise_parameters", "noise_steps", "noise_tensors", "noise_repeats"}


def test_a_model_of_one_parameter_has_no_others_to_share_noise_with():
    assert flagged_noise({"weight": parameters()["weight"]}) == set()


@pytest.mark.parametrize(
    ("values", "sigma"),
    [
        ({}, SIGMA),
        ({"bias": np.full((4, 3), np.nan)}, SIGMA),
        ({"bias": np.full((4, 3), 1e300)}, SIGMA),
        ({"bias": np.ones((1, 3))}, SIGMA),
        (parameters(), 0.0),
    ],
    ids=["no parameter", "not a number", "beyond sums of squares", "one step", "no noise claimed"],
)
def test_parameters_that_show_nothing_are_refused(values, sigma):
    with pytest.raises(Refused, match="audit_"):
        noise_tests(values, sigma, false_alarm_rate=ALARM)
