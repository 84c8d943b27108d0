"""Figures of weighted images, intervals over patients, paired tests and their correction."""

from dataclasses import replace

import numpy as np
import pytest
from experiment_fakes import scores_of
from hypothesis import given
from hypothesis import strategies as st

from multimix.contract.statistics import EvaluationStatistics
from multimix.metrics import classification_statistics, summarise
from sim.experiments import inference
from sim.experiments.inference import STATISTICS, auroc, compare, estimate, f1, holm

NAN = float("nan")


def figure(metric, probability, label, weight=None):
    scores = scores_of(probability, label)
    return STATISTICS[metric](scores, np.ones(len(label)) if weight is None else np.array(weight, float))


def brute_force_auroc(probability, label, weight):
    won = pairs = 0.0
    for p, a, v in zip(probability, label, weight, strict=True):
        for q, b, w in zip(probability, label, weight, strict=True):
            if (a, b) == (1, 0):
                won += v * w * (1.0 if p > q else 0.5 if p == q else 0.0)
                pairs += v * w
    return won / pairs if pairs else NAN


images = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.sampled_from([-1, 0, 1, 2]), st.integers(0, 3)),
    min_size=1,
    max_size=25,
)


@given(images=images)
def test_auroc_is_the_share_of_weighted_pairs_won_with_ties_counting_half(images):
    probability, label, weight = (list(column) for column in zip(*images, strict=True))
    found = auroc(scores_of(probability, label), np.array(weight, float))
    assert found == pytest.approx(brute_force_auroc(probability, label, weight), nan_ok=True)


# Right at one half: images 0, 1 (normal), 3, 4 (pneumonia); wrong: 2 (normal), 5 (pneumonia), 6 is neither.
PROBABILITY = [0.1, 0.3, 0.5, 0.9, 0.5, 0.2, 0.99]
LABEL = [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("metric", "weight", "expected"),
    [
        ("accuracy", None, 4 / 6),
        ("accuracy", [1, 1, 4, 1, 1, 2, 9], 4 / 10),
        ("balanced_accuracy", None, (2 / 3 + 2 / 3) / 2),
        ("balanced_accuracy", [1, 1, 2, 1, 1, 0, 9], (2 / 4 + 2 / 2) / 2),
        ("f1_pneumonia", None, 2 * 2 / (2 * 2 + 1 + 1)),
        ("f1_pneumonia", [1, 1, 2, 1, 1, 3, 9], 2 * 2 / (2 * 2 + 2 + 3)),
        ("f1_normal", [1, 1, 2, 1, 1, 3, 9], 2 * 2 / (2 * 2 + 2 + 3)),
        ("score_std", [1, 0, 0, 1, 0, 0, 9], 0.4),  # of 0.1 and 0.9
        ("score_std", [0, 0, 1, 0, 1, 0, 9], 0.0),
        # One image in the bin of confidence 0.9, right; one in that of 0.8, wrong.
        ("ece", [0, 0, 0, 1, 0, 1, 9], (0.1 + 0.8) / 2),
    ],
)
def test_a_figure_of_weighted_images_is_that_of_the_hand(metric, weight, expected):
    assert figure(metric, PROBABILITY, LABEL, weight) == pytest.approx(expected)


@pytest.mark.parametrize(
    "metric", ["accuracy", "balanced_accuracy", "f1_normal", "f1_pneumonia", "ece", "score_std", "auroc"]
)
def test_a_figure_of_unweighted_images_is_that_of_a_report(metric):
    rng = np.random.default_rng(3)
    # Scores in steps of the report's histogram, whose AUROC is then exact.
    probability, label = rng.integers(0, 65, 200) / 64, rng.integers(0, 2, 200)
    statistics = EvaluationStatistics(
        patients=200, images=200, classification=classification_statistics(probability, label)
    )
    assert figure(metric, probability, label) == pytest.approx(summarise(statistics)[metric])


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "f1_pneumonia", "ece", "score_std"])
def test_an_image_of_neither_class_is_not_scored_for_the_class(metric):
    assert figure(metric, [0.1, 0.8, 0.7], [0, 1, -1]) == figure(metric, [0.1, 0.8], [0, 1])


def test_the_f1_of_a_class_that_is_neither_there_nor_predicted_is_undefined():
    assert np.isnan(f1(scores_of([0.1], [0]), np.ones(1), positive=1))


def test_the_mean_of_a_measure_leaves_out_images_without_a_mask():
    scores = scores_of(dice=[0.5, NAN, 0.8])
    assert STATISTICS["dice"](scores, np.array([1.0, 5.0, 2.0])) == pytest.approx((0.5 + 2 * 0.8) / 3)


def random_scores(count: int, seed: int, *, patient=None):
    rng = np.random.default_rng(seed)
    return scores_of(rng.random(count), np.arange(count) % 2, patient=patient, dice=rng.random(count))


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "dice"])
def test_the_interval_holds_the_value(metric):
    found = estimate([random_scores(60, 0)], metric, replicates=200)
    assert found.low < found.value < found.high


def doubled(scores, *, same_patient: bool):
    """Every image twice: of the same patient, or of a new one."""
    patient = [*scores.patient, *(scores.patient if same_patient else scores.patient + 1000)]
    two = [np.concatenate([column, column]) for column in (scores.probability, scores.label, scores.measures[:, 0])]
    return scores_of(two[0], two[1], patient=patient, dice=two[2])


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "dice"])
def test_more_images_of_the_same_patients_do_not_narrow_the_interval(metric):
    scores = random_scores(40, 1)
    once, twice = (estimate([each], metric, replicates=100) for each in (scores, doubled(scores, same_patient=True)))
    assert twice.model_dump() == pytest.approx(once.model_dump())


def test_more_patients_narrow_the_interval():
    scores = random_scores(40, 1)
    once, twice = (estimate([each], "dice", replicates=300) for each in (scores, doubled(scores, same_patient=False)))
    # The width goes with one over the root of the number of patients.
    assert (once.high - once.low) / (twice.high - twice.low) == pytest.approx(np.sqrt(2), rel=0.25)


def test_the_same_seed_gives_the_same_interval():
    scores = [random_scores(30, 2)]
    assert estimate(scores, "auroc", replicates=50, seed=4) == estimate(scores, "auroc", replicates=50, seed=4)
    assert estimate(scores, "auroc", replicates=50, seed=4) != estimate(scores, "auroc", replicates=50, seed=5)


def test_the_figure_of_several_models_is_the_mean_of_theirs():
    models = [random_scores(30, seed) for seed in (5, 6)]
    expected = np.mean([STATISTICS["dice"](each, np.ones(30)) for each in models])
    assert estimate(models, "dice", replicates=10).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "metric"),
    [
        (scores_of([0.2, 0.7], [1, 1]), "auroc"),  # one class alone
        (scores_of([0.2, 0.7], [1, 1]), "balanced_accuracy"),
        (scores_of([0.2, 0.7], [-1, 2]), "accuracy"),  # no class
        (scores_of(dice=[0.5, 0.6]), "ece"),  # no classifier
        (scores_of([0.2, 0.7], [0, 1]), "dice"),  # no mask
    ],
)
def test_a_figure_that_is_undefined_has_neither_value_nor_interval(scores, metric):
    found = estimate([scores], metric, replicates=10)
    assert (found.value, found.low, found.high) == (None, None, None)


def test_models_of_different_images_have_no_common_figure():
    with pytest.raises(ValueError, match="same images"):
        estimate([random_scores(10, 0), random_scores(11, 0)], "dice")
    with pytest.raises(ValueError, match="same images"):
        compare([random_scores(10, 0)], [random_scores(11, 0)], "dice")


def test_a_comparison_needs_as_many_models_of_both_rows():
    with pytest.raises(ValueError, match="as many models"):
        compare([random_scores(10, 0)], [random_scores(10, 0), random_scores(10, 1)], "dice")


def test_equal_rows_do_not_differ():
    found = compare([random_scores(20, 0)], [random_scores(20, 0)], "dice", replicates=50)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


LABELS = [0, 1] * 20
PERFECT = scores_of([0.1, 0.9] * 20, LABELS)
HALF_WRONG = scores_of([0.1, 0.9] * 10 + [0.9, 0.1] * 10, LABELS)


def test_a_clear_difference_has_its_sign_its_size_and_a_small_p():
    found = compare([PERFECT], [HALF_WRONG], "accuracy", replicates=199)
    assert found.difference == pytest.approx(0.5)
    assert 0.2 < found.low < 0.5 < found.high < 0.8
    # Twenty coins all one way are not thrown in 20 x 199 tries: only the real one counts.
    assert found.p == pytest.approx(1 / (20 * 199 + 1))
    assert found.seeds == 1


def test_rows_the_other_way_round_give_the_opposite_difference_and_the_same_p():
    there, back = (
        compare([a], [b], "accuracy", replicates=99) for a, b in ((PERFECT, HALF_WRONG), (HALF_WRONG, PERFECT))
    )
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p == there.p


def rescaled(scores):
    return replace(scores, probability=scores.probability**8)


def test_a_scale_that_moves_no_rank_moves_neither_the_difference_of_an_auroc_nor_its_p():
    good, bad = (random_scores(60, seed) for seed in (1, 2))
    plain, scaled = (compare([good], [each], "auroc", replicates=50) for each in (bad, rescaled(bad)))
    assert scaled == plain
    assert compare([good], [rescaled(good)], "auroc", replicates=50).p == 1.0


def test_a_difference_that_is_plainly_nothing_ends_its_test_early(monkeypatch):
    exchanged = []
    monkeypatch.setattr(inference, "_exchanged", lambda a, b, _: exchanged.append(1) or (a, b))
    assert compare([random_scores(20, 0)], [random_scores(20, 1)], "dice", replicates=1000).p == 1.0
    assert len(exchanged) == 50


def test_many_images_of_one_patient_prove_nothing():
    one = [scores_of(each.probability, LABELS, patient=[7] * 40) for each in (PERFECT, HALF_WRONG)]
    assert compare([one[0]], [one[1]], "accuracy", replicates=99).p == 1.0


def test_a_difference_of_several_models_is_the_mean_over_them():
    found = compare([PERFECT, PERFECT], [HALF_WRONG, PERFECT], "accuracy", replicates=20)
    assert (found.difference, found.seeds) == (pytest.approx(0.25), 2)


def test_a_row_without_a_classifier_has_no_difference_in_the_class():
    assert compare([PERFECT], [scores_of([NAN] * 40, LABELS)], "accuracy", replicates=10) is None


def test_holm_corrects_step_by_step():
    # In order 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_takes_an_empty_family():
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(p_values=p_values)
def test_holm_keeps_the_order_and_lowers_nothing(p_values):
    corrected = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, corrected, strict=True))
    ranked = [corrected[i] for i in np.argsort(p_values, kind="stable")]
    assert ranked == sorted(ranked)


@given(p_values=p_values, random=st.randoms(use_true_random=False))
def test_holm_does_not_depend_on_the_order_of_a_family(p_values, random):
    order = list(range(len(p_values)))
    random.shuffle(order)
    shuffled = holm([p_values[i] for i in order])
    assert shuffled == pytest.approx([holm(p_values)[i] for i in order])
