import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from multimix.errors import InputError
from multimix.privacy.central import (
    SiteLevel,
    average_privately,
    calibrate_site_level,
    clipped_update,
    explanation,
    hollow,
    hollow_because,
    noise_to_signal,
    spent,
    usual_delta,
)

PAPER_PARAMETERS = 1_965_173
SHAPES = {"encoder.a": (2, 3), "classifier.b": (2,), "decoder.c": (3,)}


def _level(**fields):
    usual = {"noise_multiplier": 1.5, "clip_norm": 0.7, "sites": 4, "delta": 0.025, "rounds": 10, "epsilon": 8.0}
    return SiteLevel(**(usual | fields))


def _weights(seed, scale=1.0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    return {name: (scale * draw.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


def _silence(count):
    return np.zeros(count)


def _moved(before, after):
    return np.concatenate([(after[name] - before[name]).astype(np.float64).ravel() for name in sorted(before)])


def test_a_round_is_previous_plus_clipped_updates_plus_noise_over_the_fixed_number_of_sites():
    previous, level = _weights(0, dtype=np.float64), _level()
    received = {site: _weights(seed, dtype=np.float64) for seed, site in enumerate("abc", 1)}
    noise = np.random.default_rng(9).standard_normal(11)
    total = 1.5 * 0.7 * noise
    for sent in received.values():
        update = _moved(previous, sent)
        total = total + update * min(1.0, 0.7 / math.sqrt(sum(x * x for x in update)))
    result = average_privately(previous, received, level, normals=lambda count: noise[:count])
    assert np.allclose(_moved(previous, result.weights), total / 4, rtol=0, atol=1e-11)


def test_the_result_has_the_types_of_the_weights_before():
    previous = _weights(0) | {"decoder.c": np.ones(3, np.float64)}
    after = average_privately(previous, {"a": previous}, _level()).weights
    assert {name: value.dtype for name, value in after.items()} == {n: v.dtype for n, v in previous.items()}


@given(st.permutations(range(5)), st.floats(0.01, 10))
def test_the_order_of_answers_changes_no_bit(order, scale):
    previous, level = _weights(0), _level(sites=5)
    received = {f"site{i}": _weights(i + 1, scale) for i in range(5)}
    shuffled = {f"site{i}": received[f"site{i}"] for i in order}
    one, other = (average_privately(previous, sent, level, normals=np.ones).weights for sent in (received, shuffled))
    assert all((one[name] == other[name]).all() for name in previous)


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=3, max_size=3),
    st.floats(1e-6, 1e6),
)
def test_no_update_is_ever_longer_than_the_clip_norm(values, clip_norm):
    update, _ = clipped_update({"encoder.a": np.zeros(3)}, {"encoder.a": np.array(values)}, clip_norm=clip_norm)
    assert math.hypot(*update) <= clip_norm


def test_an_update_within_the_clip_norm_is_not_touched_and_a_longer_one_keeps_its_direction():
    origin, sent = {"encoder.a": np.zeros(2)}, {"encoder.a": np.array([3.0, 4.0])}
    same, was_long = clipped_update(origin, sent, clip_norm=6.0)
    assert (list(same), was_long) == ([3.0, 4.0], False)
    cut, was_long = clipped_update(origin, sent, clip_norm=1.0)
    assert was_long
    assert cut == pytest.approx([0.6, 0.8], abs=1e-11)


def test_one_clip_covers_all_modules_together():
    origin = {"encoder.a": np.zeros(1), "decoder.c": np.zeros(1)}
    cut, _ = clipped_update(origin, {"encoder.a": np.full(1, 30.0), "decoder.c": np.full(1, 40.0)}, clip_norm=5.0)
    assert sorted(cut) == pytest.approx([3.0, 4.0], abs=1e-10)


def test_an_absent_site_counts_as_zero_over_the_same_number_of_sites():
    previous = {"encoder.a": np.zeros(2)}
    sent = {"encoder.a": np.array([0.3, 0.4])}
    after = average_privately(previous, {"a": sent}, _level(sites=10), normals=_silence).weights
    assert after["encoder.a"] == pytest.approx([0.03, 0.04])


def test_a_module_that_a_site_does_not_teach_counts_as_zero_over_the_same_number_of_sites():
    previous = {"encoder.a": np.zeros(1), "decoder.c": np.zeros(1)}
    received = {"a": {"encoder.a": np.full(1, 0.4)}, "b": {"encoder.a": np.full(1, 0.2), "decoder.c": np.full(1, 0.2)}}
    after = average_privately(previous, received, _level(sites=4), normals=_silence).weights
    assert after["encoder.a"] == pytest.approx([0.15])
    assert after["decoder.c"] == pytest.approx([0.05])


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from(["a", "b", "c"]))
def test_removing_one_site_moves_the_average_by_at_most_the_clip_norm_over_the_number_of_sites(seed, scale, removed):
    previous, level = _weights(0, dtype=np.float64), _level()
    received = {site: _weights([seed, i], scale, np.float64) for i, site in enumerate("abc")}
    fewer = {site: sent for site, sent in received.items() if site != removed}
    one, other = (average_privately(previous, sent, level, normals=_silence).weights for sent in (received, fewer))
    assert np.linalg.norm(_moved(one, other)) <= 0.7 / 4 * (1 + 1e-9)


@pytest.mark.parametrize(
    "sent",
    [
        {"encoder.a": np.array([np.nan, 1.0])},
        {"encoder.a": np.array([np.inf, 1.0])},
        {"encoder.a": np.array([1e200, 1e200])},  # its square is infinite
        {"encoder.a": np.ones(3)},
        {"encoder.a": np.array(["1", "2"])},
        {"foreign.a": np.ones(2)},
    ],
)
def test_an_update_that_cannot_be_clipped_counts_as_zero(sent):
    previous = {"encoder.a": np.array([0.5, 0.5])}
    good = {"encoder.a": np.array([0.9, 0.5])}
    after = average_privately(previous, {"bad": sent, "good": good}, _level(), normals=_silence).weights
    assert after["encoder.a"] == pytest.approx([0.6, 0.5])


def test_arrays_that_the_plan_does_not_train_stay_as_they_are_whatever_is_sent():
    previous, level = _weights(0), _level()
    asked = []

    def ones(count):
        asked.append(count)
        return np.ones(count)

    result = average_privately(previous, {"a": _weights(1)}, level, trained={"classifier.b"}, normals=ones).weights
    assert (result["encoder.a"] == previous["encoder.a"]).all()
    assert (result["classifier.b"] != previous["classifier.b"]).all()
    assert asked == [2]


def test_the_noise_has_the_standard_deviation_z_c_over_n():
    previous = {"encoder.a": np.zeros(200_000)}
    noise = average_privately(previous, {}, _level()).weights["encoder.a"]
    expected = 1.5 * 0.7 / 4
    # The standard deviation of m normals has a standard error of 1 / sqrt(2 m): five of them, and five of the mean.
    assert noise.std() == pytest.approx(expected, rel=5 / math.sqrt(400_000))
    assert abs(noise.mean()) < 5 * expected / math.sqrt(200_000)


def test_two_rounds_share_no_noise():
    previous = {"encoder.a": np.zeros(10_000)}
    one, other = (average_privately(previous, {}, _level()).weights["encoder.a"] for _ in range(2))
    assert not (one == other).any()
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(10_000)


def test_more_answers_than_sites_are_an_error():
    previous = _weights(0)
    with pytest.raises(InputError) as error:
        average_privately(previous, dict.fromkeys("abcde", previous), _level())
    assert error.value.reason == "too_many_sites"


@pytest.mark.parametrize(
    "field",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"clip_norm": -1.0},
        {"clip_norm": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"sites": 0},
        {"rounds": 0},
        {"epsilon": math.inf},
    ],
)
def test_impossible_settings_are_an_error(field):
    with pytest.raises(InputError, match=next(iter(field))):
        _level(**field)


def _exact_noise(epsilon, delta, rounds):
    """Least noise multiplier of so many Gaussian rounds: Balle and Wang 2018, equation 6, with mu = sqrt(T) / z."""

    def excess(mu):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta

    return math.sqrt(rounds) / brentq(excess, 1e-3, 50)


@pytest.mark.parametrize(("sites", "design"), [(3, 1188), (10, 398), (1000, 5)])
def test_the_noise_of_fifty_rounds_at_epsilon_8_is_what_the_design_says(sites, design):
    noise = _exact_noise(8, usual_delta(sites), 50)
    level = _level(noise_multiplier=noise, sites=sites, delta=usual_delta(sites), rounds=50)
    assert noise_to_signal(level, PAPER_PARAMETERS) == pytest.approx(design, rel=0.1)


def test_calibration_meets_the_target_with_hardly_more_noise_than_the_exact_formula_asks():
    level = calibrate_site_level(target_epsilon=8.0, delta=usual_delta(10), rounds=50, sites=10, clip_norm=0.5)
    exact = _exact_noise(8, usual_delta(10), 50)
    assert exact * 0.999 <= level.noise_multiplier <= exact * 1.02
    assert 7.8 <= level.epsilon <= 8.0
    assert (level.clip_norm, level.sites, level.rounds) == (0.5, 10, 50)


def test_rounds_cost_what_the_exact_formula_says_and_none_cost_nothing():
    level = _level(noise_multiplier=_exact_noise(3, 0.025, 10), rounds=50)
    assert spent(level, 0).epsilon == 0
    assert spent(level, 10).epsilon == pytest.approx(3, abs=0.05)
    assert spent(level, 10).epsilon < spent(level, 11).epsilon


@pytest.mark.parametrize("rounds", [-1, 11])
def test_rounds_that_were_not_planned_have_no_price(rounds):
    with pytest.raises(InputError):
        spent(_level(rounds=10), rounds)


def test_impossible_targets_are_refused_before_the_accountants_see_them():
    with pytest.raises(InputError, match="epsilon"):
        calibrate_site_level(target_epsilon=-1.0, delta=0.01, rounds=5, sites=10, clip_norm=1.0)


def test_a_claim_with_many_sites_and_few_parameters_is_not_hollow():
    level = _level(noise_multiplier=3.5, sites=1000, delta=1e-4)
    assert noise_to_signal(level, 10_000) == pytest.approx(0.35)  # 3.5 sqrt(10,000) / 1,000
    assert not hollow(level, 10_000)
    assert "hollow" not in explanation(level, 10_000)


@pytest.mark.parametrize(
    ("field", "parameters", "reason"),
    [
        ({}, 1_000_000, "noise is 3.5 times"),  # 3.5 sqrt(1,000,000) / 1,000
        ({"sites": 99}, 1, "99 sites are fewer"),
        ({"delta": 1e-3}, 1, "one site in 1000"),
        ({"epsilon": 12.0}, 1, "epsilon 12"),
    ],
)
def test_each_weakness_alone_makes_a_claim_hollow(field, parameters, reason):
    level = _level(**({"noise_multiplier": 3.5, "sites": 1000, "delta": 1e-4} | field))
    (said,) = hollow_because(level, parameters)
    assert reason in said
    assert hollow(level, parameters)


def test_the_explanation_of_a_hollow_claim_has_three_sentences_with_numbers_and_asks_for_consent():
    level = _level(noise_multiplier=2.584, sites=3, delta=usual_delta(3), rounds=50)
    claim, noise, worth = explanation(level, PAPER_PARAMETERS).split("\n")
    for number in ("50 rounds", "3 sites", "epsilon 8", "delta 0.033", "99.97 %"):  # 1 / (1 + exp(-8))
        assert number in claim
    assert "1,207 C" in noise  # 2.584 sqrt(1,965,173) / 3
    assert "hollow" in worth
    assert "--accept" in worth
    assert "dp-accept=true" in worth


def test_an_absurd_epsilon_is_explained_rather_than_overflowing():
    assert "100 % sure" in explanation(_level(epsilon=1e6), 10)
