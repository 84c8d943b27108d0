"""Figures of membership attacks, what a guarantee permits, and the likelihood-ratio attack on scores."""

from math import exp, inf, log, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from multimix.audit.membership import (
    Shadows,
    attack_figures,
    choose_halves,
    clopper_pearson,
    joint_likelihood_ratio_scores,
    likelihood_ratio_scores,
    permitted_auc,
    permitted_tpr,
    run_shadows,
)
from multimix.errors import InputError

RATES = st.floats(0, 1)
EPSILONS = st.floats(0, 50)
TIED = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


def random(seed=0):
    return np.random.default_rng(seed)


# --- figures


@given(TIED, TIED)
def test_the_auc_is_that_of_scikit_learn_with_ties(members, others):
    expected = roc_auc_score([1] * len(members) + [0] * len(others), members + others)
    assert attack_figures(np.array(members), np.array(others)).auc == pytest.approx(expected, abs=1e-12)


@given(TIED, TIED)
def test_swapping_members_and_others_mirrors_the_auc_and_its_interval(members, others):
    one, two = attack_figures(np.array(members), np.array(others)), attack_figures(np.array(others), np.array(members))
    assert one.auc == pytest.approx(1 - two.auc)
    assert one.auc_interval == pytest.approx((1 - two.auc_interval[1], 1 - two.auc_interval[0]))


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_the_auc_interval_covers_the_true_auc_in_19_of_20_draws(shift):
    truth = norm.cdf(shift / sqrt(2))  # of two normals a shift apart
    source, covered = random(), 0
    for _ in range(400):
        low, high = attack_figures(source.normal(shift, 1, 40), source.normal(0, 1, 60)).auc_interval
        covered += low <= truth <= high
    assert covered >= binom.ppf(0.001, 400, 0.95)


def test_scores_of_one_distribution_show_no_attack():
    figures = attack_figures(random(1).normal(size=1000), random(2).normal(size=1000))
    assert figures.auc_interval[0] < 0.5 < figures.auc_interval[1]
    assert figures.tpr_interval[0] < 0.01 < figures.tpr_interval[1]


def test_separated_scores_are_an_attack_that_no_small_epsilon_permits():
    figures = attack_figures(np.arange(200.0) + 200, np.arange(200.0))
    assert (figures.auc, figures.tpr, figures.fpr) == (1.0, 1.0, 0.01)
    # Wilson at 1 of 200 trials: 1 / (1 + z^2 / 200).
    assert figures.auc_interval == (pytest.approx(1 / (1 + norm.ppf(0.975) ** 2 / 200)), 1.0)
    assert figures.auc_interval[0] > permitted_auc(3.0, 1e-5)


def test_one_in_a_hundred_others_may_pass_the_threshold():
    others = np.arange(250.0)  # 2 of 250 may pass: 249 and 248, so the threshold is 247
    figures = attack_figures(np.array([247.0, 247.5, 300.0, 0.0]), others)
    assert (figures.fpr, figures.tpr, figures.note) == (2 / 250, 0.5, "")
    assert (figures.members, figures.others) == (4, 250)


def test_others_tied_at_the_threshold_do_not_pass():
    others = np.array([9.0] + [5.0] * 199)  # 2 may pass, but the second is tied with all the rest
    figures = attack_figures(np.array([5.0, 6.0]), others)
    assert (figures.fpr, figures.tpr) == (1 / 200, 0.5)


def test_fewer_than_100_others_let_none_through_and_a_note_says_so():
    figures = attack_figures(np.array([98.0, 99.0]), np.arange(99.0))
    assert (figures.fpr, figures.tpr) == (0.0, 0.5)
    assert "Fewer than 100" in figures.note


@given(st.integers(1, 60), st.data())
def test_the_interval_of_a_proportion_has_its_tails(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = clopper_pearson(successes, trials)
    assert low == 0.0 if successes == 0 else binom.sf(successes - 1, trials, low) == pytest.approx(0.025)
    assert high == 1.0 if successes == trials else binom.cdf(successes, trials, high) == pytest.approx(0.025)


@pytest.mark.parametrize("wrong", [nan, inf])
def test_scores_that_are_no_numbers_are_refused(wrong):
    for members, others in [([1.0, wrong], [0.0]), ([1.0], [wrong])]:
        with pytest.raises(InputError) as refusal:
            attack_figures(np.array(members), np.array(others))
        assert refusal.value.reason == "scores_not_finite"


def test_an_empty_side_is_refused():
    with pytest.raises(InputError) as refusal:
        attack_figures(np.array([1.0]), np.array([]))
    assert refusal.value.reason == "patients_missing"


# --- what a guarantee permits


def test_the_permitted_rates_at_small_and_large_false_positive_rates():
    epsilon, delta = log(3), 0.01
    assert permitted_tpr(0.1, epsilon, delta) == pytest.approx(3 * 0.1 + 0.01)
    assert permitted_tpr(0.6, epsilon, delta) == pytest.approx(1 - (1 - 0.6 - 0.01) / 3)


@given(RATES, st.floats(0, 1))
def test_epsilon_zero_permits_delta_above_guessing(fpr, delta):
    assert permitted_tpr(fpr, 0.0, delta) == pytest.approx(min(1.0, fpr + delta))


@given(RATES, EPSILONS, RATES)
def test_the_permitted_rate_is_that_of_both_inequalities_of_the_definition(fpr, epsilon, delta):
    tpr = permitted_tpr(fpr, epsilon, delta)
    assert tpr <= exp(epsilon) * fpr + delta + 1e-9  # an accepted member beside an accepted other
    assert 1 - fpr <= exp(epsilon) * (1 - tpr) + delta + 1e-9 * exp(epsilon)  # a rejected other beside a member
    assert fpr - 1e-12 <= tpr <= 1


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0, 6.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.3])
def test_the_permitted_auc_is_the_area_under_the_permitted_rates(epsilon, delta):
    fpr = np.linspace(0, 1, 20_001)
    area = np.trapezoid([permitted_tpr(rate, epsilon, delta) for rate in fpr], fpr)
    assert permitted_auc(epsilon, delta) == pytest.approx(area, abs=1e-4)


def test_an_infinite_epsilon_permits_everything():
    assert permitted_tpr(0.0, inf, 0.0) == permitted_auc(inf, 0.0) == 1.0


def test_a_huge_epsilon_does_not_overflow():
    assert permitted_tpr(0.01, 5000.0, 0.0) == 1.0
    assert permitted_tpr(0.0, 5000.0, 1e-5) == 1e-5


def test_a_gaussian_mechanism_stays_below_what_its_guarantee_permits():
    # Scores N(0, 1) and N(1, 1): the sum query with noise 1; delta(eps) of Balle and Wang 2018 (arXiv 1805.06530).
    for epsilon in (0.1, 1.0, 3.0):
        delta = norm.cdf(0.5 - epsilon) - exp(epsilon) * norm.cdf(-0.5 - epsilon)
        for fpr in np.linspace(0.001, 0.999, 200):
            assert norm.sf(norm.isf(fpr) - 1) <= permitted_tpr(fpr, epsilon, delta) + 1e-12
        assert norm.cdf(1 / sqrt(2)) <= permitted_auc(epsilon, delta)


@pytest.mark.parametrize(("fpr", "epsilon", "delta"), [(0.1, -1.0, 0), (0.1, nan, 0), (0.1, 1, 1.5), (0.1, 1, nan)])
def test_a_guarantee_that_is_none_is_refused(fpr, epsilon, delta):
    for permitted in (lambda: permitted_tpr(fpr, epsilon, delta), lambda: permitted_auc(epsilon, delta)):
        with pytest.raises(InputError) as refusal:
            permitted()
        assert refusal.value.reason == "guarantee_invalid"


@pytest.mark.parametrize("fpr", [-0.1, 1.1, nan])
def test_a_false_positive_rate_that_is_none_is_refused(fpr):
    with pytest.raises(InputError) as refusal:
        permitted_tpr(fpr, 1.0, 0.0)
    assert refusal.value.reason == "rate_invalid"


# --- the likelihood-ratio attack


def scored(patients, models, *, seed=0, effect=1.0, noise=0.5, difficulty=3.0):
    """Target scores, its members and shadows, of patients whose scores differ by difficulty more than by membership."""
    source = random(seed)
    trained_on = choose_halves(patients, models, seed)
    members = source.random(patients) < 0.5
    easy = source.normal(0, difficulty, patients)
    shadows = easy + effect * trained_on + source.normal(0, noise, trained_on.shape)
    return easy + effect * members + source.normal(0, noise, patients), members, shadows, trained_on


@pytest.mark.parametrize("models", [16, 64])  # one variance for all, one for each patient
def test_the_likelihood_ratio_beats_the_loss_where_difficulty_varies(models):
    target, members, shadows, trained_on = scored(600, models)
    ratios = likelihood_ratio_scores(target, shadows, trained_on)
    by_loss, by_ratio = (attack_figures(each[members], each[~members]) for each in (target, ratios))
    # Between pairs the loss has variance 2 (3^2 + 0.5^2) around an effect of 1; who knows the difficulty 2 * 0.5^2.
    assert by_loss.auc_interval[0] < norm.cdf(1 / sqrt(2 * 9.25)) < by_loss.auc_interval[1]  # 0.59
    assert 0.85 < by_ratio.auc < norm.cdf(1 / sqrt(2 * 0.25)) + 0.02  # 0.92 if it were known
    assert by_ratio.auc_interval[0] > by_loss.auc_interval[1]
    assert by_ratio.tpr_interval[0] > by_loss.tpr


def test_the_likelihood_ratio_finds_nothing_where_membership_has_no_effect():
    target, members, shadows, trained_on = scored(600, 8, effect=0.0)
    ratios = likelihood_ratio_scores(target, shadows, trained_on)
    low, high = attack_figures(ratios[members], ratios[~members]).auc_interval
    assert low < 0.5 < high


def test_few_shadows_share_a_variance_and_keep_their_means():
    trained_on = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], dtype=bool)
    shadows = np.array([[4.0, 10.0], [6.0, 10.0], [0.0, 1.0], [2.0, 5.0]])
    # Means with: 5 and 10, without: 1 and 3. Squares with: 2 and 0, one degree of freedom each: variance 1.
    # Without: 2 and 8: variance 5.
    expected = norm.logpdf([3.0, 9.0], [5, 10], 1) - norm.logpdf([3.0, 9.0], [1, 3], sqrt(5))
    assert likelihood_ratio_scores(np.array([3.0, 9.0]), shadows, trained_on) == pytest.approx(expected)


def test_many_shadows_give_each_patient_a_variance():
    target, _, shadows, trained_on = scored(3, 64)
    expected = [
        norm.logpdf(target[i], np.mean(shadows[trained_on[:, i], i]), np.std(shadows[trained_on[:, i], i], ddof=1))
        - norm.logpdf(target[i], np.mean(shadows[~trained_on[:, i], i]), np.std(shadows[~trained_on[:, i], i], ddof=1))
        for i in range(3)
    ]
    assert likelihood_ratio_scores(target, shadows, trained_on) == pytest.approx(expected)


def test_shadows_that_agree_to_the_last_digit_give_finite_scores():
    trained_on = choose_halves(3, 4, 0)
    assert np.isfinite(likelihood_ratio_scores(np.zeros(3), trained_on.astype(float), trained_on)).all()


@pytest.mark.parametrize("times", [0, 1, 3, 4])
def test_a_patient_in_too_few_or_too_many_shadows_is_refused(times):
    trained_on = np.arange(4)[:, None] < times
    with pytest.raises(InputError) as refusal:
        likelihood_ratio_scores(np.zeros(1), np.zeros((4, 1)), trained_on)
    assert refusal.value.reason == "shadows_too_few"


def test_shadows_of_other_patients_are_refused():
    with pytest.raises(InputError) as refusal:
        likelihood_ratio_scores(np.zeros(2), np.zeros((4, 1)), np.ones((4, 1), dtype=bool))
    assert refusal.value.reason == "scores_shape"


def test_a_shadow_model_that_diverged_is_refused():
    target, _, shadows, trained_on = scored(5, 4)
    shadows[1, 2] = nan
    with pytest.raises(InputError) as refusal:
        likelihood_ratio_scores(target, shadows, trained_on)
    assert refusal.value.reason == "scores_not_finite"


def both_statistics(patients=20, models=8):
    first, second = scored(patients, models, seed=1), scored(patients, models, seed=2)
    trained_on = first[3]
    scores = np.stack([first[2], second[2]], axis=1)
    return np.stack([first[0], second[0]]), Shadows(scores, trained_on)


def test_log_ratios_of_two_statistics_add():
    target, shadows = both_statistics()
    expected = sum(likelihood_ratio_scores(target[i], shadows.scores[:, i], shadows.trained_on) for i in range(2))
    assert joint_likelihood_ratio_scores(target, shadows) == pytest.approx(expected)


def test_a_statistic_that_a_patient_lacks_says_nothing():
    target, shadows = both_statistics()
    target[1, 7:] = shadows.scores[:, 1, 7:] = nan
    alone = likelihood_ratio_scores(target[0], shadows.scores[:, 0], shadows.trained_on)
    assert joint_likelihood_ratio_scores(target, shadows)[7:] == pytest.approx(alone[7:])


def test_a_statistic_missing_in_one_model_only_is_refused():
    target, shadows = both_statistics()
    shadows.scores[3, 1, 5] = nan
    with pytest.raises(InputError) as refusal:
        joint_likelihood_ratio_scores(target, shadows)
    assert refusal.value.reason == "scores_not_finite"


def test_a_patient_without_any_statistic_is_refused():
    target, shadows = both_statistics()
    target[:, 5] = shadows.scores[:, :, 5] = nan
    with pytest.raises(InputError) as refusal:
        joint_likelihood_ratio_scores(target, shadows)
    assert refusal.value.reason == "patients_missing"


# --- shadow models


@given(st.integers(1, 40), st.integers(2, 8), st.integers(0, 5))
def test_every_patient_is_in_half_of_the_models_and_every_model_has_half_of_the_patients(patients, pairs, seed):
    halves = choose_halves(patients, 2 * pairs, seed)
    assert (halves.sum(axis=0) == pairs).all()
    assert set(halves.sum(axis=1)) <= {patients // 2, patients - patients // 2}


@pytest.mark.parametrize(("models", "reason"), [(2, "shadows_too_few"), (5, "shadows_odd")])
def test_too_few_models_or_one_without_a_partner_are_refused(models, reason):
    with pytest.raises(InputError) as refusal:
        choose_halves(10, models, 0)
    assert refusal.value.reason == reason


def fake_run(seed, progress=None):
    """Shadows whose training is to remember its patients and seed, and whose scores are both."""
    return run_shadows(
        lambda chosen, model_seed: (chosen, model_seed),
        lambda model: np.stack([model[0].astype(float), np.full(len(model[0]), float(model[1]))]),
        patients=6,
        models=4,
        seed=seed,
        progress=progress,
    )


def test_shadows_are_the_same_for_the_same_seed_and_others_for_another():
    one, again, other = fake_run(1), fake_run(1), fake_run(2)
    assert np.array_equal(one.scores, again.scores)
    assert not np.array_equal(one.trained_on, other.trained_on)
    assert not np.array_equal(one.scores[:, 1], other.scores[:, 1])


def test_shadows_are_trained_on_the_patients_they_say_with_seeds_of_their_own():
    shadows = fake_run(1)
    assert np.array_equal(shadows.scores[:, 0], shadows.trained_on)
    assert len(np.unique(shadows.scores[:, 1, 0])) == 4


def test_progress_hears_every_model():
    heard: list[int] = []
    fake_run(1, heard.append)
    assert heard == [1, 2, 3, 4]
