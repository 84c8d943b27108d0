"""Estimators of the one-run audit, against jax-privacy's and against trainers whose privacy is known exactly."""

import math
from functools import lru_cache

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_privacy import auditing as oracle
from scipy.optimize import brentq, linprog
from scipy.stats import norm

from multimix.audit.estimators import (
    Guesses,
    approximate_curve,
    ceiling,
    correct_guesses,
    fdp_approximate_epsilon,
    fdp_excess,
    fdp_gaussian_epsilon,
    gaussian_curve,
    lower_bound,
    numbers_of_guesses,
    steinke_epsilon,
    steinke_p_value,
)
from multimix.errors import Refused

COUNTS = [
    (2000, 150, 150),
    (2000, 250, 230),
    (200, 200, 130),
    (300, 300, 299),
    (300, 40, 20),
    (200, 100, 99),
    (50, 20, 20),
    (50, 50, 0),
    (7, 1, 1),
]
DELTAS = [1e-6, 1e-5, 1e-3, 1e-2]
SIGNIFICANCES = [0.05, 0.001]
ANY_PRIVACY = [steinke_epsilon, fdp_approximate_epsilon]
ALL = [*ANY_PRIVACY, fdp_gaussian_epsilon]


@st.composite
def guesses(draw, most_canaries=300):
    canaries = draw(st.integers(1, most_canaries))
    made = draw(st.integers(1, canaries))
    return Guesses(canaries, made, draw(st.integers(0, made)))


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("significance", SIGNIFICANCES)
def test_the_bound_of_steinke_is_that_of_jax_privacy(counts, delta, significance):
    theirs = oracle._epsilon_one_run(0, *counts, significance, delta)
    assert steinke_epsilon(Guesses(*counts), delta=delta, significance=significance) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("significance", SIGNIFICANCES)
def test_the_gaussian_bound_is_that_of_jax_privacy(counts, delta, significance):
    theirs = oracle._epsilon_one_run_fdp(0, *counts, significance, delta)
    ours = fdp_gaussian_epsilon(Guesses(*counts), delta=delta, significance=significance)
    assert ours == pytest.approx(theirs, abs=1e-6)


@given(guesses(), st.floats(0, 8), st.sampled_from([0.0, *DELTAS]))
def test_the_p_value_of_steinke_is_that_of_jax_privacy(g, epsilon, delta):
    theirs = oracle._one_run_p_value(g.canaries, g.guesses, g.correct, epsilon, delta)
    assert steinke_p_value(g, epsilon=epsilon, delta=delta) == pytest.approx(theirs, abs=1e-9)


@given(guesses(), st.floats(0, 6), st.floats(0, 0.5), st.floats(0, 0.1))
def test_the_p_value_rises_with_epsilon_up_to_a_quarter(g, epsilon, step, delta):
    later = steinke_p_value(g, epsilon=epsilon + step, delta=delta)
    assert later >= min(0.25, steinke_p_value(g, epsilon=epsilon, delta=delta)) - 1e-12


def test_without_delta_every_guess_right_is_refuted_up_to_the_root_of_the_significance():
    # All of r guesses are right with probability q^r, q = e^eps / (1 + e^eps): refuted while q^r < significance.
    q = 0.05 ** (1 / 600)
    found = steinke_epsilon(Guesses(2000, 600, 600), delta=0.0, significance=0.05)
    assert found == pytest.approx(math.log(q / (1 - q)), abs=1e-9)


@pytest.mark.parametrize("estimator", ALL)
@given(g=guesses(most_canaries=150), delta=st.sampled_from(DELTAS), significance=st.sampled_from(SIGNIFICANCES))
@settings(max_examples=40, deadline=None)
def test_one_more_right_guess_never_lowers_a_bound_and_none_is_negative(estimator, g, delta, significance):
    bound = estimator(g, delta=delta, significance=significance)
    better = Guesses(g.canaries, g.guesses, min(g.guesses, g.correct + 1))
    assert 0 <= bound <= estimator(better, delta=delta, significance=significance) + 1e-8


@pytest.mark.parametrize("estimator", ALL)
@given(g=guesses(most_canaries=150), delta=st.sampled_from(DELTAS))
@settings(max_examples=20, deadline=None)
def test_less_significance_never_raises_a_bound(estimator, g, delta):
    assert estimator(g, delta=delta, significance=0.001) <= estimator(g, delta=delta, significance=0.05) + 1e-8


@pytest.mark.parametrize("estimator", ANY_PRIVACY)
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("significance", [0.05, 0.005])
def test_correct_randomised_response_is_flagged_in_no_more_than_the_significance_of_2000_audits(
    estimator, epsilon, significance
):
    flagged = flags(estimator, Guesses(200, 200, 0), epsilon=epsilon, delta=0.0, significance=significance)
    right = np.random.default_rng(7).binomial(200, response(epsilon), size=2000)
    assert 0 < np.mean(flagged) < 1
    assert np.mean(flagged[right]) <= significance


@pytest.mark.parametrize("estimator", ANY_PRIVACY)
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 1.5])
@pytest.mark.parametrize(("delta", "significance"), [(1e-5, 0.001), (1e-4, 0.01), (1e-3, 0.05), (0.01, 0.2)])
def test_the_private_trainer_that_errs_together_most_is_flagged_no_more_often(estimator, epsilon, delta, significance):
    flagged = flags(estimator, Guesses(80, 80, 0), epsilon=epsilon, delta=delta, significance=significance)
    fewest = int(np.argmax(flagged))
    assert flagged[fewest:].all()
    assert 0 < most_often_right(fewest, canaries=80, epsilon=epsilon, delta=delta) <= significance


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("significance", [0.05, 0.005])
def test_a_correct_gaussian_mechanism_is_flagged_in_no_more_than_the_significance_of_2000_audits(
    estimator, mu, significance
):
    epsilon = gaussian_epsilon(mu, 1e-5)
    rng = np.random.default_rng(11)

    @lru_cache
    def flagged(right):
        return estimator(Guesses(200, 100, right), delta=1e-5, significance=significance) > epsilon

    def audit():
        included = rng.random(200) < 0.5
        scores = rng.normal(size=200) + mu * included
        return flagged(correct_guesses(scores[included], scores[~included], guessed_in=50, guessed_out=50))

    assert np.mean([audit() for _ in range(2000)]) <= significance


def test_the_gaussian_bound_is_below_the_truth_and_above_two_fifths_of_the_truth():
    rng = np.random.default_rng(3)
    included = rng.random(2000) < 0.5
    scores = rng.normal(size=2000) + included
    bound = lower_bound(scores[included], scores[~included], delta=1e-5, significance=0.05).fdp_gaussian
    truth = gaussian_epsilon(1.0, 1e-5)
    assert 0.4 * truth < bound.epsilon <= truth


@pytest.mark.parametrize("significance", [0.05, 0.005])
def test_trying_several_numbers_of_guesses_flags_no_more_than_the_significance(significance):
    rng = np.random.default_rng(5)

    def any_bound_above_0():
        included = rng.random(130) < 0.5
        scores = rng.normal(size=130)  # tell nothing
        bound = lower_bound(scores[included], scores[~included], delta=0.001, significance=significance)
        return max(bound.steinke.epsilon, bound.fdp_approximate.epsilon) > 0

    assert np.mean([any_bound_above_0() for _ in range(300)]) <= 2 * significance


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.064, 1.0, 500), (0.01, 0.5, 1), (0.5, 1.0, 20), (1.0, 2.0, 3)])
def test_subsampled_steps_leak_no_more_than_the_gaussian_mechanism_they_are_compared_with(rate, noise, steps):
    loss = from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=1e-3).self_compose(steps)
    epsilon = loss.get_epsilon_for_delta(1e-5)
    mu = brentq(lambda mu: gaussian_epsilon(mu, 1e-5) - epsilon, 0.05, 12)
    for smaller in np.linspace(0, epsilon, 20):
        assert loss.get_delta_for_epsilon(smaller) <= gaussian_delta(mu, smaller) * 1.001


def test_a_curve_without_privacy_is_never_refuted_and_one_of_perfect_privacy_is_by_200_right_guesses():
    g = Guesses(200, 200, 200)
    assert fdp_excess(g, lambda _: 0.0, significance=0.05) < 0
    assert fdp_excess(g, lambda x: x, significance=0.05) > 0


@given(st.floats(1e-9, 1 - 1e-9), st.floats(0.01, 6))
def test_the_gaussian_curve_touches_that_of_each_epsilon_and_its_delta(x, mu):
    epsilon = abs(mu * (norm.ppf(x) - mu / 2))  # the line that touches it at x
    touching = approximate_curve(epsilon, gaussian_delta(mu, epsilon))(x)
    assert gaussian_curve(mu)(x) == pytest.approx(touching, abs=1e-9)


def test_the_highest_scores_are_guessed_in_and_the_lowest_out():
    included, excluded = np.array([0.9, 0.8, 0.2]), np.array([0.85, 0.1, 0.3])
    # In: 0.9 right, 0.85 wrong. Out: 0.1 right, 0.2 wrong, 0.3 right.
    assert correct_guesses(included, excluded, guessed_in=2, guessed_out=3) == 3


def test_ties_go_against_the_auditor():
    assert correct_guesses(np.ones(50), np.ones(50), guessed_in=50, guessed_out=50) == 0
    # The two guesses in beyond the clear one are among equals of which three are wrong.
    included, excluded = np.array([2.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0])
    assert correct_guesses(included, excluded, guessed_in=3, guessed_out=0) == 1


def test_the_numbers_of_guesses_leave_room_for_uneven_coins_and_halve_down_to_32():
    # 4 standard deviations of 2,000 coins are 4 sqrt(2000) / 2 on either side: 2000 - 4 sqrt(2000) = 1821.1.
    assert numbers_of_guesses(2000) == (1822, 911, 455, 227, 113, 56)
    assert numbers_of_guesses(10) == (5,)


def test_scores_that_tell_all_reach_the_ceiling_of_every_method():
    included = np.random.default_rng(1).random(2000) < 0.5
    bound = lower_bound(np.ones(included.sum()), np.zeros(2000 - included.sum()), delta=1e-5, significance=0.05)
    for estimate in (bound.steinke, bound.fdp_approximate, bound.fdp_gaussian):
        assert estimate.epsilon == estimate.ceiling > 5
        assert estimate.best.correct == estimate.best.guesses


def test_the_bound_is_the_best_of_the_numbers_tried_at_its_share_of_the_significance():
    rng = np.random.default_rng(2)
    included = rng.random(400) < 0.5
    scores = rng.normal(size=400) + 2 * included
    bound = lower_bound(scores[included], scores[~included], delta=1e-4, significance=0.05, guesses=(40, 200))
    right = {
        r: correct_guesses(scores[included], scores[~included], guessed_in=r // 2, guessed_out=r // 2)
        for r in (40, 200)
    }
    alone = [steinke_epsilon(Guesses(400, r, v), delta=1e-4, significance=0.025) for r, v in right.items()]
    assert bound.steinke.epsilon == max(alone) > 0
    assert bound.guesses == (40, 200)


def test_the_ceiling_of_600_guesses_alone_is_the_5_3_of_the_design():
    # All of 600 right with probability q^600 = 1/20 without delta: logit(q) = -log(20^(1/600) - 1).
    found = ceiling(2000, delta=0.0, significance=0.05, method="steinke", guesses=(600,))
    assert found == pytest.approx(-math.log(20 ** (1 / 600) - 1), abs=1e-9)
    assert found == pytest.approx(5.3, abs=0.01)


@pytest.mark.parametrize("counts", [(10, 11, 0), (10, 5, 6), (10, 0, 0), (0, 0, 0), (10, 5, -1), (10.0, 5, 1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(Refused, match="audit_counts"):
        Guesses(*counts)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(
    ("delta", "significance"), [(-0.1, 0.05), (1.0, 0.05), (math.nan, 0.05), (1e-5, 0.0), (1e-5, 0.3), (1e-5, math.nan)]
)
def test_parameters_out_of_range_are_refused(estimator, delta, significance):
    with pytest.raises(Refused, match="audit_parameters"):
        estimator(Guesses(10, 5, 5), delta=delta, significance=significance)


def test_a_gaussian_bound_at_delta_0_is_refused():
    with pytest.raises(Refused, match="audit_parameters"):
        fdp_gaussian_epsilon(Guesses(10, 5, 5), delta=0.0, significance=0.05)


@pytest.mark.parametrize(
    ("included", "excluded", "options", "reason"),
    [
        ([1.0] * 20, [math.nan] * 20, {}, "audit_scores"),
        ([1.0] * 20, [math.inf] * 20, {}, "audit_scores"),
        ([[1.0] * 20], [0.0] * 20, {}, "audit_scores"),
        (["Doe^Jane"] * 20, [0.0] * 20, {}, "audit_scores"),
        ([], [], {}, "audit_counts"),
        ([1.0] * 320, [0.0] * 180, {}, "audit_inclusion"),
        ([1.0] * 50, [], {}, "audit_inclusion"),
        ([1.0] * 20, [0.0] * 20, {"guesses": ()}, "audit_parameters"),
        ([1.0] * 20, [0.0] * 20, {"guesses": (8, 8)}, "audit_parameters"),
        ([1.0] * 20, [0.0] * 20, {"guesses": (41,)}, "audit_counts"),
    ],
)
def test_canaries_that_prove_nothing_are_refused(included, excluded, options, reason):
    with pytest.raises(Refused) as refused:
        lower_bound(included, excluded, delta=1e-5, significance=0.05, **options)
    assert refused.value.reason == reason
    assert "Doe" not in str(refused.value)


def test_more_guesses_than_canaries_are_refused_when_counted():
    with pytest.raises(Refused, match="audit_counts"):
        correct_guesses(np.ones(2), np.zeros(2), guessed_in=3, guessed_out=2)


def response(epsilon):
    """How often randomised response tells the truth."""
    return 1 / (1 + math.exp(-epsilon))


def flags(estimator, g, *, epsilon, delta, significance):
    """For each number of right guesses whether the bound is above the true epsilon."""
    counts = (Guesses(g.canaries, g.guesses, right) for right in range(g.guesses + 1))
    return np.array([estimator(g, delta=delta, significance=significance) > epsilon for g in counts])


def most_often_right(right, *, canaries, epsilon, delta):
    """Return the most probable that (epsilon, delta)-DP lets so many right answers be: a linear program.

    It is over all mechanisms that answer for every canary and treat the canaries alike: those are given by the
    probabilities p_n of n wrong answers. On the data with one coin turned the same answers have one wrong more, or one
    less, and for each case the excess over e^epsilon times its probability there counts towards delta.
    """
    wrong = np.arange(canaries)
    p = np.eye(canaries + 1)
    rest_wrong = p[:-1] * (1 - wrong / canaries)[:, None]  # n wrong, the turned one being right
    one_more = p[1:] * ((wrong + 1) / canaries)[:, None]  # the same answers after the turn
    excess = np.vstack([rest_wrong - math.exp(epsilon) * one_more, one_more - math.exp(epsilon) * rest_wrong])
    rows = np.vstack([np.hstack([excess, -np.eye(len(excess))]), np.r_[np.zeros(canaries + 1), np.ones(len(excess))]])
    found = linprog(
        np.r_[-(np.arange(canaries + 1) <= canaries - right).astype(float), np.zeros(len(excess))],
        A_ub=rows,
        b_ub=np.r_[np.zeros(len(excess)), delta],
        A_eq=[np.r_[np.ones(canaries + 1), np.zeros(len(excess))]],
        b_eq=[1.0],
    )
    return -found.fun


def gaussian_delta(mu, epsilon):
    """Balle and Wang 2018 (arXiv:1805.06530), theorem 8."""
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


def gaussian_epsilon(mu, delta):
    return brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0, 500, xtol=1e-12)
