"""Metrics against independent implementations, and the laws they obey."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist, directed_hausdorff
from skimage.metrics import structural_similarity
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from multimix.contract.statistics import EvaluationStatistics, add
from multimix.errors import InputError
from multimix.metrics import (
    classification_statistics,
    dice,
    hausdorff_px,
    jaccard,
    segmentation_statistics,
    ssim,
    summarise,
)

masks = hnp.arrays(np.bool_, st.tuples(st.integers(7, 14), st.integers(7, 14)))
pairs = st.tuples(st.integers(7, 14), st.integers(7, 14)).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)
scored = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=60)


def ellipses(rng, size=64):
    """A prediction and a truth that overlap, as lungs do."""
    y, x = np.mgrid[:size, :size] / size
    shapes = []
    for _ in range(2):
        cy, cx = 0.5 + 0.1 * rng.standard_normal(2)
        ry, rx = rng.uniform(0.15, 0.35, 2)
        shapes.append((y - cy) ** 2 / ry**2 + (x - cx) ** 2 / rx**2 < 1)
    return shapes


def surface_distances(prediction, truth):
    """All pairwise distances between surfaces, written without distance transforms."""
    points = [np.argwhere(mask & ~binary_erosion(mask)) for mask in (prediction, truth)]
    return cdist(*points)


def arrays(rows):
    return np.array([score for score, _ in rows]), np.array([label for _, label in rows])


def evaluation(rows):
    return EvaluationStatistics(
        patients=len(rows), images=len(rows), classification=classification_statistics(*arrays(rows))
    )


def figures(rows):
    return summarise(evaluation(rows))


def square(size=10, side=4):
    mask = np.zeros((size, size), dtype=bool)
    mask[2 : 2 + side, 2 : 2 + side] = True
    return mask


# Segmentation


def test_overlap_of_a_shifted_square_is_the_counted_overlap():
    shifted = np.roll(square(), 1, axis=1)  # 16 pixels each, 12 in common, 20 in either
    assert dice(square(), shifted) == 24 / 32
    assert jaccard(square(), shifted) == 12 / 20


@given(pairs)
def test_jaccard_is_dice_over_two_minus_dice(pair):
    d = dice(*pair)
    assert jaccard(*pair) == pytest.approx(d / (2 - d), abs=1e-12)


@given(pairs)
def test_every_measure_is_symmetric(pair):
    prediction, truth = pair
    for measure in (dice, jaccard, hausdorff_px, ssim):
        assert measure(prediction, truth) == pytest.approx(measure(truth, prediction), abs=1e-12)


@given(masks)
def test_a_mask_is_identical_to_itself(mask):
    measured = [measure(mask, mask) for measure in (dice, jaccard, ssim, hausdorff_px)]
    assert measured == pytest.approx([1, 1, 1, 0])


@given(pairs)
def test_hausdorff_equals_brute_force_over_surface_pixels(pair):
    prediction, truth = pair
    if not (prediction.any() and truth.any()):
        return
    distances = surface_distances(prediction, truth)
    directed = distances.min(axis=1), distances.min(axis=0)
    assert hausdorff_px(prediction, truth) == pytest.approx(max(d.max() for d in directed))
    expected = max(np.percentile(d, 95) for d in directed)
    assert hausdorff_px(prediction, truth, percentile=95) == pytest.approx(expected)


def test_hausdorff_of_filled_shapes_equals_scipy_directed_hausdorff_of_their_surfaces():
    prediction, truth = ellipses(np.random.default_rng(1))
    p, t = (np.argwhere(m & ~binary_erosion(m)) for m in (prediction, truth))
    expected = max(directed_hausdorff(p, t)[0], directed_hausdorff(t, p)[0])
    assert hausdorff_px(prediction, truth) == pytest.approx(expected)


def test_hausdorff_of_a_shift_by_three_pixels_is_three():
    assert hausdorff_px(square(), np.roll(square(), 3, axis=1)) == 3


def test_one_stray_pixel_moves_hausdorff_but_hardly_its_95th_percentile():
    prediction = square(size=40, side=20)
    prediction[39, 39] = True  # 18 rows and columns from the corner (21, 21)
    truth = square(size=40, side=20)
    assert hausdorff_px(prediction, truth) == pytest.approx(math.hypot(18, 18))
    assert hausdorff_px(prediction, truth, percentile=95) == 0


@given(pairs)
def test_ssim_equals_scikit_image(pair):
    p, t = (mask.astype(np.float64) for mask in pair)
    expected = structural_similarity(p, t, win_size=7, data_range=1)
    assert ssim(*pair) == pytest.approx(expected, abs=1e-6)


def test_ssim_equals_scikit_image_on_lung_sized_masks():
    p, t = ellipses(np.random.default_rng(2), size=128)
    expected = structural_similarity(p.astype(float), t.astype(float), win_size=7, data_range=1)
    assert ssim(p, t) == pytest.approx(expected, abs=1e-6)


def test_two_empty_masks_agree_perfectly():
    empty = np.zeros((9, 12), dtype=bool)
    assert [dice(empty, empty), jaccard(empty, empty), ssim(empty, empty)] == [1, 1, 1]
    assert hausdorff_px(empty, empty) == 0


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_mask_has_no_overlap_and_the_diagonal_as_distance(swap):
    pair = [np.zeros((30, 40), dtype=bool), np.ones((30, 40), dtype=bool)][:: -1 if swap else 1]
    assert [dice(*pair), jaccard(*pair)] == [0, 0]
    assert hausdorff_px(*pair) == 50
    assert hausdorff_px(*pair, percentile=95) == 50


@pytest.mark.parametrize(
    ("prediction", "truth", "reason"),
    [
        (np.zeros((8, 8)), np.zeros((8, 8), dtype=bool), "mask_not_bool"),
        (np.zeros((8, 9), dtype=bool), np.zeros((8, 8), dtype=bool), "mask_shapes_differ"),
        (np.zeros((6, 9), dtype=bool), np.zeros((6, 9), dtype=bool), "mask_too_small"),
    ],
)
def test_unusable_masks_are_refused_with_a_reason(prediction, truth, reason):
    with pytest.raises(InputError) as error:
        dice(prediction, truth)
    assert error.value.reason == reason


def test_segmentation_statistics_hold_the_sums_of_the_per_image_measures():
    rng = np.random.default_rng(3)
    stack = [ellipses(rng) for _ in range(4)]
    stack.append([np.zeros((64, 64), dtype=bool), stack[0][1]])
    predictions, truths = (np.stack(side) for side in zip(*stack, strict=True))
    table = segmentation_statistics(predictions, truths)
    assert (table.images, table.empty_prediction, table.empty_truth) == (5, 1, 0)
    for name, measure in [
        ("dice", dice),
        ("jaccard", jaccard),
        ("hausdorff_px", hausdorff_px),
        ("ssim", ssim),
    ]:
        values = [measure(p, t) for p, t in zip(predictions, truths, strict=True)]
        assert table.moments(name).total == pytest.approx(sum(values))
        assert table.moments(name).squares == pytest.approx(sum(v * v for v in values))
    robust = [hausdorff_px(p, t, percentile=95) for p, t in zip(predictions, truths, strict=True)]
    assert table.hausdorff95_px.total == pytest.approx(sum(robust))


def test_no_images_give_an_empty_table():
    none = np.zeros((0, 16, 16), dtype=bool)
    table = segmentation_statistics(none, none)
    assert (table.images, table.dice.count) == (0, 0)


def test_segmentation_statistics_stay_near_two_milliseconds_an_image_at_128_px():
    rng = np.random.default_rng(4)
    predictions, truths = (np.stack(s) for s in zip(*[ellipses(rng, 128) for _ in range(20)], strict=True))
    fastest = math.inf
    for _ in range(5):  # the fastest of five, in processor time: other jobs on the machine do not count
        start = time.process_time()
        segmentation_statistics(predictions, truths)
        fastest = min(fastest, time.process_time() - start)
    assert fastest / 20 < 0.02  # ten times the budget, for a slow or busy machine


# Classification


@given(scored)
def test_auroc_lies_within_its_tie_bounds(rows):
    scores, labels = arrays(rows)
    found = figures(rows)
    if len(set(labels.tolist())) < 2:
        assert (found["auroc"], found["auroc_low"], found["auroc_high"]) == (None, None, None)
        return
    exact = roc_auc_score(labels, scores)
    assert found["auroc_low"] - 1e-9 <= exact <= found["auroc_high"] + 1e-9


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 1)), min_size=2, max_size=60))
def test_auroc_is_exact_when_ties_are_the_bins(rows):
    if len({label for _, label in rows}) < 2:
        return
    exact = roc_auc_score([label for _, label in rows], [i for i, _ in rows])
    assert figures([((i + 0.5) / 64, label) for i, label in rows])["auroc"] == pytest.approx(exact)


@given(scored)
def test_decisions_equal_scikit_learn(rows):
    scores, labels = arrays(rows)
    predicted = (scores >= 0.5).astype(int)
    found = figures(rows)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    for key, positive in [("f1_normal", 0), ("f1_pneumonia", 1)]:
        if positive in labels or positive in predicted:
            assert found[key] == pytest.approx(f1_score(labels, predicted, pos_label=positive))
        else:
            assert found[key] is None
    both = len(set(labels.tolist())) == 2
    assert found["balanced_accuracy"] == (pytest.approx(balanced_accuracy_score(labels, predicted)) if both else None)


def test_majority_figures_are_those_of_always_predicting_the_frequent_class():
    found = figures([(0.1, 1)] * 3 + [(0.9, 0)])
    labels, constant = [1, 1, 1, 0], [1, 1, 1, 1]
    assert found["majority_accuracy"] == accuracy_score(labels, constant)
    assert found["majority_balanced_accuracy"] == 0.5
    assert found["majority_f1_pneumonia"] == pytest.approx(f1_score(labels, constant))
    assert found["majority_f1_normal"] == 0


def test_calibration_error_is_the_weighted_gap_of_confidence_and_accuracy():
    rows = [(0.9, 1), (0.9, 0), (0.2, 0)]  # confidence 0.9: one of two right; 0.8: right
    expected = (2 * abs(0.5 - 0.9) + 1 * abs(1 - 0.8)) / 3
    assert figures(rows)["ece"] == pytest.approx(expected)


def test_calibration_error_keeps_over_and_underconfidence_in_different_bins():
    rows = [(0.99, 0), (0.51, 1)]  # in one bin the gap would be |1 - 1.5| / 2
    assert figures(rows)["ece"] == pytest.approx((0.99 + 0.49) / 2)


def test_score_spread_is_the_standard_deviation():
    rows = [(0.1, 0), (0.4, 1), (0.85, 1)]
    assert figures(rows)["score_std"] == pytest.approx(np.std([0.1, 0.4, 0.85]))


def test_collapse_to_one_score_shows_as_zero_spread():
    assert figures([(0.7, 0), (0.7, 1), (0.7, 1)] * 100)["score_std"] == 0


def test_score_of_one_half_is_pneumonia_in_the_upper_half_of_the_histogram():
    table = classification_statistics(np.array([0.5]), np.array([0]))
    assert table.confusion == ((0, 1), (0, 0))
    assert table.score_counts[0][32] == 1


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([0.5, 0.5], [1], "scores_and_labels_differ"),
        ([1.5], [1], "score_not_probability"),
        ([math.nan], [1], "score_not_probability"),
        ([0.5], [-1], "label_not_binary"),
    ],
)
def test_unusable_scores_are_refused_with_a_reason(scores, labels, reason):
    with pytest.raises(InputError) as error:
        classification_statistics(np.array(scores), np.array(labels))
    assert error.value.reason == reason


# Summaries


@settings(max_examples=50)
@given(scored, scored)
def test_figures_of_a_sum_are_those_of_the_pooled_images(first, second):
    pooled = figures(first + second)
    summed = summarise(add(evaluation(first), evaluation(second)))
    assert summed == pytest.approx(pooled, nan_ok=False, abs=1e-9)


def table_of(rng, n):
    predictions, truths = (np.stack(s) for s in zip(*[ellipses(rng) for _ in range(n)], strict=True))
    return predictions, truths, segmentation_statistics(predictions, truths)


def test_convention_picks_a_table_and_none_sums_them():
    rng = np.random.default_rng(5)
    p1, t1, first = table_of(rng, 2)
    p2, t2, second = table_of(rng, 3)
    statistics = EvaluationStatistics(
        patients=5, images=5, segmentation={"a": first, "b": second}, mean_mask={"a": second}
    )
    dices = [dice(p, t) for p, t in [*zip(p1, t1, strict=True), *zip(p2, t2, strict=True)]]
    assert summarise(statistics, "a")["dice"] == pytest.approx(np.mean(dices[:2]))
    assert summarise(statistics)["dice"] == pytest.approx(np.mean(dices))
    assert summarise(statistics)["dice_std"] == pytest.approx(np.std(dices))
    assert summarise(statistics)["masked_images"] == 5
    assert summarise(statistics, "a")["mean_mask_dice"] == pytest.approx(np.mean(dices[2:]))
    assert summarise(statistics, "b")["mean_mask_dice"] is None


def test_every_figure_of_an_empty_evaluation_is_none_but_the_counts():
    found = summarise(EvaluationStatistics(patients=0, images=0))
    assert {key for key, value in found.items() if value is not None} == {"labelled_images", "masked_images"}
    assert found["labelled_images"] == found["masked_images"] == 0


def test_full_and_empty_evaluations_have_the_same_keys():
    rng = np.random.default_rng(6)
    full = EvaluationStatistics(
        patients=4,
        images=4,
        classification=classification_statistics(np.array([0.2, 0.8]), np.array([0, 1])),
        segmentation={"a": table_of(rng, 2)[2]},
        mean_mask={"a": table_of(rng, 2)[2]},
    )
    found = summarise(full)
    assert found.keys() == summarise(EvaluationStatistics(patients=0, images=0)).keys()
    assert None not in found.values()


def test_metrics_import_no_torch():
    code = "import sys, multimix.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
