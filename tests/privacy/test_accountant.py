import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from multimix.errors import Refused
from multimix.privacy import accountant
from multimix.privacy.accountant import (
    Mechanism,
    affordable_steps,
    calibrate_noise,
    default_delta,
    merged,
    price,
    versions,
)
from multimix.privacy.bounds import pld_epsilon, prv_epsilon, renyi_epsilon

DELTA = 1e-5
STEP = Mechanism(noise_multiplier=1.2, sampling_rate=0.05)


def epsilon(noise_multiplier, rate, steps, delta=DELTA):
    return price({Mechanism(noise_multiplier, rate): steps}, delta=delta).epsilon


def gaussian_epsilon(noise_multiplier, delta):
    """Balle and Wang 2018 (arXiv:1805.06530), theorem 8: the exact epsilon of one Gaussian mechanism."""

    def excess(epsilon):
        near, far = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        return norm.cdf(near - far) - math.exp(epsilon) * norm.cdf(-near - far) - delta

    return brentq(excess, 0, 100, xtol=1e-10)


# (patients, rate, (epsilon at epochs)) of the design: "Epsilon to expect (sigma 1.0, PRV)".
EXPECTED = [
    (500, 0.064, {10: 3.7, 50: 9.4, 200: 23.7}),
    (5_000, 0.0128, {10: 1.8, 50: 4.25, 200: 9.6}),
    (50_000, 0.0051, {10: 1.3, 50: 2.9, 200: 6.3}),
]


@pytest.mark.parametrize(("patients", "rate", "expected"), EXPECTED)
def test_epsilon_is_what_the_design_expects(patients, rate, expected):
    # Stated to two figures, so within half a unit of the second, and half a unit above for what is rounded up.
    found = {epochs: epsilon(1.0, rate, round(epochs / rate), default_delta(patients)) for epochs in expected}
    assert found == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(("noise_multiplier", "rounds"), [(5.0, 50), (4.0, 1), (30.0, 1000), (2.0, 7)])
def test_unsampled_steps_cost_what_the_exact_formula_says(noise_multiplier, rounds):
    exact = gaussian_epsilon(noise_multiplier / math.sqrt(rounds), DELTA)
    found = price({Mechanism(noise_multiplier, 1.0): rounds}, delta=DELTA)
    assert exact <= found.pld <= exact + 0.006 + 0.002 * exact
    assert exact <= found.prv <= exact + 0.0105 + 0.008 * exact


def test_the_price_is_the_larger_of_both_accountants():
    found = price({STEP: 100}, delta=DELTA)
    assert found.epsilon == max(found.prv, found.pld)
    assert found.difference == abs(found.prv - found.pld)
    assert 0 < found.difference <= 0.02 + 0.01 * found.epsilon
    assert found.delta == DELTA


def test_nothing_costs_nothing():
    for history in ({}, {STEP: 0}):
        found = price(history, delta=DELTA)
        assert (found.epsilon, found.prv, found.pld) == (0, 0, 0)


ROUNDING = 1e-3  # PRV's mesh is coarser than the loss of a single quiet step
mechanisms = st.builds(Mechanism, st.floats(0.7, 5), st.floats(1e-3, 1))


@settings(max_examples=6, deadline=None)
@given(mechanisms, st.integers(1, 200), st.integers(1, 200))
def test_more_steps_cost_more(mechanism, steps, more):
    assert (
        accountant._epsilon({mechanism: steps}, DELTA)
        <= accountant._epsilon({mechanism: steps + more}, DELTA) + ROUNDING
    )


@settings(max_examples=6, deadline=None)
@given(mechanisms, st.floats(1.05, 3), st.integers(1, 200))
def test_less_noise_costs_more(mechanism, factor, steps):
    quieter = Mechanism(mechanism.noise_multiplier * factor, mechanism.sampling_rate)
    assert accountant._epsilon({quieter: steps}, DELTA) <= accountant._epsilon({mechanism: steps}, DELTA) + ROUNDING


@settings(max_examples=6, deadline=None)
@given(mechanisms, st.floats(0.1, 0.95), st.integers(1, 200))
def test_a_higher_rate_costs_more(mechanism, factor, steps):
    rarer = Mechanism(mechanism.noise_multiplier, max(1e-4, mechanism.sampling_rate * factor))
    assert accountant._epsilon({rarer: steps}, DELTA) <= accountant._epsilon({mechanism: steps}, DELTA) + ROUNDING


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(mechanisms, mechanisms, st.integers(1, 100), st.integers(1, 100))
def test_a_part_of_a_history_costs_less_than_the_whole(first, second, count, other):
    part, whole = {first: count}, merged({first: count}, {second: other})
    assert accountant._epsilon(part, DELTA) <= accountant._epsilon(whole, DELTA) + ROUNDING


@pytest.mark.parametrize(
    "rows",
    [
        ((1.0, 0.064, 156),),
        ((1.0, 0.064, 157),),
        ((5.0, 1.0, 50),),
        ((1.0, 0.05, 100), (2.0, 0.1, 51), (1.5, 0.03, 200)),
        ((1.0, 0.001, 3000), (8.0, 1.0, 3)),
    ],
    ids=["even", "odd", "plain", "three mechanisms", "sampled and plain"],
)
def test_the_fast_prv_accountant_finds_what_opacus_finds(rows):
    from opacus.accountants import PRVAccountant

    stock = PRVAccountant()
    stock.history = list(rows)
    assert prv_epsilon(rows, DELTA, about=0.0) == pytest.approx(stock.get_epsilon(DELTA), abs=1e-4)


@pytest.mark.slow
def test_coarser_meshes_of_long_histories_still_bound_from_above():
    # 640,000 steps of two mechanisms exceed the mesh that error 0.01 would take. Google's default mesh is the judge:
    # its own error is 0.36 n h^2 = 0.0023 at most (measured against PRV).
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    rows = ((1.0, 0.0005, 320_000), (2.0, 0.001, 320_000))
    fine = PLDAccountant(value_discretization_interval=1e-4)
    for noise_multiplier, rate, steps in rows:
        step = PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier))
        fine.compose(SelfComposedDpEvent(step, steps))
    reference = fine.get_epsilon(DELTA)
    pld = pld_epsilon(rows, DELTA)
    assert reference - 0.0023 <= pld <= reference + 0.006 + 0.002 * reference
    assert reference - 0.0023 <= prv_epsilon(rows, DELTA, about=pld) <= reference + 0.01 + 0.008 * reference


@pytest.mark.parametrize("rows", [((1.0, 0.01, 1000),), ((3.0, 0.2, 40), (8.0, 1.0, 5))])
def test_the_rough_bound_is_above_both_and_not_by_far(rows):
    pld = pld_epsilon(rows, DELTA)
    assert pld <= renyi_epsilon(rows, DELTA) <= 1.3 * pld


def test_accountants_that_differ_too_much_do_not_agree():
    assert accountant._agreed(10.0, 10.0 + 0.02 + 0.1)  # 1 % of the larger is a little more than 0.1
    assert not accountant._agreed(10.0, 10.0 + 0.02 + 0.11)
    assert not accountant._agreed(10.13, 10.0)
    assert accountant._agreed(0.02, 0.0)
    assert not accountant._agreed(0.03, 0.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_agrees_with_nothing(broken):
    assert not accountant._agreed(broken, 1.0)
    assert not accountant._agreed(1.0, broken)
    assert not accountant._agreed(broken, broken)


def test_an_accountant_that_fails_or_returns_no_number_gives_no_price():
    def failing():
        raise ValueError("/home/patient")

    assert math.isnan(accountant._or_nan(failing))
    assert math.isnan(accountant._or_nan(lambda: math.nan))
    assert accountant._or_nan(lambda: -1e-9) == 0.0


def test_a_history_on_which_the_accountants_disagree_is_refused():
    # The rate is delta: that a patient is taken at all has probability delta, so the exact epsilon is 0 (which PLD
    # finds), but PRV bounds at delta minus its mesh's error.
    with pytest.raises(Refused) as refused:
        price({Mechanism(0.1, 1e-5): 1}, delta=1e-5)
    assert refused.value.reason == "accountants_disagree"


@pytest.mark.parametrize(
    "history",
    [
        {Mechanism(0.0, 0.1): 1},
        {Mechanism(-1.0, 0.1): 1},
        {Mechanism(math.nan, 0.1): 1},
        {Mechanism(math.inf, 0.1): 1},
        {Mechanism(0.01, 0.1): 1},
        {Mechanism(1.0, 0.0): 1},
        {Mechanism(1.0, -0.1): 1},
        {Mechanism(1.0, 1.01): 1},
        {Mechanism(1.0, math.nan): 1},
        {STEP: -1},
        {STEP: 1.5},
        {STEP: 2_000_001},
        {STEP: 1_500_000, Mechanism(9.0, 0.1): 1_500_000},
    ],
)
def test_impossible_and_absurd_histories_are_refused(history):
    with pytest.raises(Refused) as refused:
        price(history, delta=DELTA)
    assert refused.value.reason == "dp_parameters"


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, 1e-11, math.nan])
def test_impossible_deltas_are_refused(delta):
    calls = (
        lambda: price({STEP: 1}, delta=delta),
        lambda: price({}, delta=delta),
        lambda: calibrate_noise(target_epsilon=1.0, delta=delta, sampling_rate=0.1, steps=1),
        lambda: affordable_steps(mechanism=STEP, delta=delta, limit_epsilon=1.0, at_most=10),
    )
    for call in calls:
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.reason == "dp_parameters"


@pytest.mark.parametrize("history", [{Mechanism(0.3, 1.0): 100}, {Mechanism(0.5, 1.0): 2_000_000}])
def test_an_epsilon_beyond_all_protection_is_refused_and_not_computed(history):
    with pytest.raises(Refused) as refused:
        price(history, delta=DELTA)
    assert refused.value.reason == "epsilon_too_large"


def test_up_to_16_mechanisms_are_priced_as_they_are():
    history = {Mechanism(1 + index / 10, 0.01): index + 1 for index in range(16)}
    assert accountant._simplified(history) == tuple((1 + index / 10, 0.01, index + 1) for index in range(16))


histories = st.dictionaries(
    st.builds(Mechanism, st.floats(0.2, 50), st.floats(1e-4, 1)), st.integers(1, 3000), min_size=17, max_size=40
)


@settings(max_examples=50, deadline=None)
@given(histories)
def test_merged_mechanisms_stand_for_at_least_as_many_steps_with_as_little_noise_and_as_high_a_rate(history):
    rows = accountant._simplified(history)
    assert len(rows) <= 16
    assert sum(steps for _, _, steps in rows) == sum(history.values())
    for bound in history:
        merged_steps = sum(n for s, q, n in rows if s <= bound.noise_multiplier and q >= bound.sampling_rate)
        steps = sum(
            n
            for m, n in history.items()
            if m.noise_multiplier <= bound.noise_multiplier and m.sampling_rate >= bound.sampling_rate
        )
        assert merged_steps >= steps


def test_a_group_takes_the_least_noise_and_the_highest_rate():
    # 15 far apart, and two close to each other that trade noise for rate.
    apart = {Mechanism(1.0 * 2**index, 0.01): 1 for index in range(1, 16)}
    close = {Mechanism(1.0, 0.010): 3, Mechanism(1.01, 0.011): 4}
    assert (1.0, 0.011, 7) in accountant._simplified({**apart, **close})


@settings(max_examples=20, deadline=None)
@given(histories)
def test_merging_never_understates(history):
    exact = tuple((m.noise_multiplier, m.sampling_rate, steps) for m, steps in history.items())
    assert renyi_epsilon(accountant._simplified(history), DELTA) >= renyi_epsilon(exact, DELTA) - 1e-9


@pytest.mark.slow
def test_merging_neighbours_overstates_by_little():
    # 32 runs with noise 1.00 to 1.31: pairs stand for each other, and the noise of half of them drops by 0.01.
    history = {Mechanism(1 + index / 100, 0.01): 50 for index in range(32)}
    exact = pld_epsilon(tuple((m.noise_multiplier, m.sampling_rate, steps) for m, steps in history.items()), DELTA)
    assert exact <= pld_epsilon(accountant._simplified(history), DELTA) <= 1.02 * exact


def test_histories_add_up():
    other = Mechanism(2.0, 0.1)
    assert merged({STEP: 3}, {STEP: 4, other: 1}) == {STEP: 7, other: 1}
    assert merged({}, {}) == {}


def test_the_order_of_a_history_does_not_matter():
    other = Mechanism(2.0, 0.1)
    assert price({STEP: 20, other: 10}, delta=DELTA) is price({other: 10, STEP: 20}, delta=DELTA)


def test_delta_is_below_one_in_all_patients():
    assert default_delta(1000) == pytest.approx(1000**-1.1)
    assert all(default_delta(patients) < 1 / patients for patients in (2, 100, 10**8))
    with pytest.raises(Refused):
        default_delta(1)


@pytest.mark.parametrize(
    ("target", "rate", "steps", "spent"),
    [
        (3.0, 0.064, 500, {}),
        (0.5, 0.01, 2000, {}),
        (8.0, 1.0, 50, {}),
        (4.0, 0.05, 300, {Mechanism(1.5, 0.05): 300, Mechanism(2.0, 0.05): 100}),
    ],
    ids=["usual", "small", "every site in every round", "on top of what is spent"],
)
def test_calibrated_noise_is_the_least_that_keeps_to_the_target(target, rate, steps, spent):
    noise = calibrate_noise(target_epsilon=target, delta=DELTA, sampling_rate=rate, steps=steps, spent=spent)
    with_it = price(merged(spent, {Mechanism(noise, rate): steps}), delta=DELTA).epsilon
    with_less = price(merged(spent, {Mechanism(round(noise - 0.001, 3), rate): steps}), delta=DELTA).epsilon
    assert noise == round(noise, 3)
    assert 0.99 * target <= with_it <= target < with_less


def test_a_target_that_is_already_spent_cannot_be_reached_by_noise():
    spent = {Mechanism(1.0, 0.064): 300}
    with pytest.raises(Refused) as refused:
        calibrate_noise(target_epsilon=2.0, delta=DELTA, sampling_rate=0.064, steps=1, spent=spent)
    assert refused.value.reason == "epsilon_unreachable"


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_impossible_targets_are_refused(target):
    with pytest.raises(Refused) as refused:
        calibrate_noise(target_epsilon=target, delta=DELTA, sampling_rate=0.064, steps=1)
    assert refused.value.reason == "dp_parameters"
    with pytest.raises(Refused) as refused:
        affordable_steps(mechanism=STEP, delta=DELTA, limit_epsilon=target, at_most=1)
    assert refused.value.reason == "dp_parameters"


@pytest.mark.parametrize("spent", [{}, {Mechanism(1.5, 0.05): 200}, {STEP: 50}], ids=["fresh", "other", "same"])
def test_one_more_step_than_affordable_is_beyond_the_limit(spent):
    steps = affordable_steps(mechanism=STEP, delta=DELTA, limit_epsilon=4.0, spent=spent, at_most=100_000)
    assert price(merged(spent, {STEP: steps}), delta=DELTA).epsilon <= 4.0
    assert price(merged(spent, {STEP: steps + 1}), delta=DELTA).epsilon > 4.0


def test_what_is_spent_is_no_longer_affordable():
    fresh = affordable_steps(mechanism=STEP, delta=DELTA, limit_epsilon=4.0, at_most=100_000)
    rest = affordable_steps(mechanism=STEP, delta=DELTA, limit_epsilon=4.0, spent={STEP: 50}, at_most=100_000)
    assert rest == fresh - 50


@pytest.mark.parametrize("at_most", [0, 1, 7])
def test_no_more_steps_than_asked_for_are_affordable(at_most):
    assert affordable_steps(mechanism=STEP, delta=DELTA, limit_epsilon=4.0, at_most=at_most) == at_most


def test_nothing_is_affordable_beyond_the_limit():
    spent = {Mechanism(1.0, 0.064): 300}
    assert affordable_steps(mechanism=STEP, delta=DELTA, limit_epsilon=2.0, spent=spent, at_most=100) == 0


def test_both_versions_are_named():
    assert set(versions()) == {"opacus", "dp-accounting"}
    assert all(version[0].isdigit() for version in versions().values())


def test_importing_the_accountant_loads_neither_torch_nor_the_accountants():
    code = "import sys, multimix.privacy.accountant as a; print(sorted({'torch','opacus','dp_accounting'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
