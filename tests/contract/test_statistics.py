"""Sums of statistics over sites, and what small-cell suppression lets through."""

import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from multimix.contract.statistics import (
    MEASURES,
    SCORE_BINS,
    CalibrationBin,
    ClassificationStatistics,
    EvaluationStatistics,
    Moments,
    ScoreCell,
    SegmentationStatistics,
    add,
)
from multimix.contract.suppression import suppress
from multimix.metrics import classification_statistics, summarise

# Multiples of 1/1024: their sums and squares are exact in float64, so sums can be compared with ==.
exact = st.integers(0, 1024).map(lambda i: i / 1024)
rows = st.lists(st.tuples(exact, st.integers(0, 1)), max_size=80)
minima = st.integers(2, 8)


def segmentation(values, empty_truth=0, empty_prediction=0):
    moments = Moments(count=len(values), total=sum(values), squares=sum(v * v for v in values))
    return SegmentationStatistics(
        images=len(values),
        empty_truth=empty_truth,
        empty_prediction=empty_prediction,
        **dict.fromkeys(MEASURES, moments),
    )


def evaluation(scored, tables=None, withheld=()):
    images = max([len(scored), *(len(values) for values in (tables or {}).values())])
    built = {key: segmentation(values) for key, values in (tables or {}).items()}
    return EvaluationStatistics(
        patients=images,
        images=images,
        classification=table(scored) if scored else None,
        segmentation=built,
        mean_mask=built,
        withheld=withheld,
    )


def table(scored):
    scores, labels = zip(*scored, strict=True)
    return classification_statistics(np.array(scores), np.array(labels))


evaluations = st.builds(
    evaluation,
    rows,
    st.dictionaries(st.sampled_from("abc"), st.lists(exact, min_size=1, max_size=12), max_size=3),
    st.sampled_from([(), ("x:y",), ("v:w", "x:y")]),
)


def auroc_bounds(statistics):
    found = summarise(statistics)
    return found["auroc_low"], found["auroc_high"]


def spread(normal, pneumonia):
    """Rows with the given counts per bin of the histogram's first bins."""
    return [
        ((i + 0.5) / SCORE_BINS, label)
        for label, counts in enumerate((normal, pneumonia))
        for i, count in enumerate(counts)
        for _ in range(count)
    ]


# Sums


@given(evaluations, evaluations, minima)
def test_add_commutes_also_over_suppressed_statistics(a, b, minimum):
    a = suppress(a, minimum=minimum)
    for other in (b, suppress(b, minimum=minimum + 1)):
        assert add(a, other) == add(other, a)


@settings(max_examples=50)
@given(evaluations, evaluations, evaluations, minima)
def test_add_is_associative_also_over_suppressed_statistics(a, b, c, minimum):
    b = suppress(b, minimum=minimum)
    c = suppress(c, minimum=minimum + 1)
    assert add(add(a, b), c) == add(a, add(b, c))


@given(rows, rows)
def test_the_sum_equals_the_statistics_of_the_concatenation(first, second):
    assert add(evaluation(first), evaluation(second)) == evaluation(first + second)


def test_merged_cells_over_the_same_bins_become_one_in_the_sum():
    first = suppress(evaluation(spread([5, 1, 2], [0, 0, 0, 4])), minimum=3)
    second = suppress(evaluation(spread([5, 2, 2], [0, 0, 0, 4])), minimum=3)
    merged = add(first, second).classification.merged_cells
    assert merged == (ScoreCell(low=1, high=3, normal=3 + 4, pneumonia=0),)


def test_the_sum_keeps_tables_that_only_one_side_has():
    total = add(evaluation([], {"a": [0.5]}), evaluation([(0.25, 1)], {"a": [0.25], "b": [1.0]}))
    assert total.classification == table([(0.25, 1)])
    assert total.segmentation == {"a": segmentation([0.5, 0.25]), "b": segmentation([1.0])}
    assert total.mean_mask == total.segmentation


def test_a_count_that_one_site_withheld_is_unknown_in_the_sum():
    known, unknown = segmentation([0.5], empty_truth=1), segmentation([0.5], empty_truth=None)
    a, b = (EvaluationStatistics(patients=1, images=1, segmentation={"a": t}) for t in (known, unknown))
    total = add(a, b).segmentation["a"]
    assert (total.empty_truth, total.empty_prediction) == (None, 0)


@given(evaluations, minima)
def test_statistics_survive_json(statistics, minimum):
    for sent in (statistics, suppress(statistics, minimum=minimum)):
        assert EvaluationStatistics.model_validate_json(sent.model_dump_json()) == sent


# Laws of suppression


@given(evaluations, minima)
def test_suppression_leaves_no_small_cell(statistics, minimum):
    sent = suppress(statistics, minimum=minimum)
    counts = [t.images for t in (*sent.segmentation.values(), *sent.mean_mask.values())]
    if sent.classification:
        histogram = sent.classification.score_counts
        counts += [n for row in (*histogram, *(sent.classification.confusion or ())) for n in row]
        counts += [n for cell in sent.classification.score_cells for n in (cell.normal, cell.pneumonia)]
        for part in sent.classification.calibration or ():
            counts += [part.correct, part.count - part.correct]
    assert all(n == 0 or n >= minimum for n in counts)


@given(evaluations, minima)
def test_suppression_keeps_totals(statistics, minimum):
    before, after = statistics.classification, suppress(statistics, minimum=minimum).classification
    if after is None:
        return
    assert after.class_counts == before.class_counts
    assert (after.score_sum, after.score_square_sum) == (before.score_sum, before.score_square_sum)
    assert after.confusion in (None, before.confusion)
    for field in ("count", "correct", "confidence_sum") if after.calibration else ():
        totals = (sum(getattr(part, field) for part in c.calibration) for c in (before, after))
        assert len(set(totals)) == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), max_size=80), minima)
def test_auroc_stays_within_the_widened_bounds(scored, minimum):
    sent = suppress(evaluation(scored), minimum=minimum)
    if sent.classification is None:
        return
    low, high = auroc_bounds(sent)
    before = auroc_bounds(evaluation(scored))
    scores, labels = zip(*scored, strict=True)
    assert low - 1e-9 <= before[0] <= roc_auc_score(labels, scores) + 1e-9
    assert roc_auc_score(labels, scores) - 1e-9 <= before[1] <= high + 1e-9


@given(rows, rows, minima)
def test_auroc_of_pooled_sites_stays_within_the_bounds_of_their_suppressed_sum(first, second, minimum):
    sites = [suppress(evaluation(scored), minimum=minimum) for scored in (first, second)]
    if any(site.classification is None for site in sites):
        return
    scores, labels = zip(*first, *second, strict=True)
    low, high = auroc_bounds(add(*sites))
    assert low - 1e-9 <= roc_auc_score(labels, scores) <= high + 1e-9


@given(evaluations, minima)
def test_suppressing_twice_changes_nothing_more(statistics, minimum):
    once = suppress(statistics, minimum=minimum)
    assert suppress(once, minimum=minimum) == once


@given(evaluations, evaluations, minima)
def test_a_sum_of_suppressed_statistics_can_be_suppressed_further(a, b, minimum):
    total = add(suppress(a, minimum=minimum), suppress(b, minimum=minimum))
    after = suppress(total, minimum=minimum + 3).classification
    if after is None:
        return
    assert after.class_counts == total.classification.class_counts
    counts = [n for cell in after.score_cells for n in (cell.normal, cell.pneumonia)]
    assert all(n == 0 or n >= minimum + 3 for n in counts)


@given(rows, minima)
def test_score_cells_do_not_overlap_and_a_kept_confusion_is_their_cut_at_one_half(scored, minimum):
    sent = suppress(evaluation(scored), minimum=minimum).classification
    if sent is None:
        return
    cells = sorted(sent.score_cells, key=lambda cell: cell.low)
    assert all(left.high <= right.low for left, right in pairwise(cells))
    if sent.confusion:  # so that subtracting cells from a confusion cell gives a sum of whole cells
        assert not any(cell.low < 32 < cell.high for cell in cells)
        below = [c for c in cells if c.high <= 32]
        normal, pneumonia = sent.confusion
        assert (normal[0], pneumonia[0]) == (sum(c.normal for c in below), sum(c.pneumonia for c in below))


@settings(max_examples=50)
@given(*[st.lists(st.integers(0, 4), min_size=7, max_size=7)] * 2, st.integers(2, 5))
def test_merged_bins_are_those_with_the_narrowest_auroc_interval(normal, pneumonia, minimum):
    if min(sum(normal), sum(pneumonia)) < minimum:
        return
    fewest = min(pairs for pairs in _pairs_of_every_merge(normal, pneumonia, minimum) if pairs is not None)
    low, high = auroc_bounds(suppress(evaluation(spread(normal, pneumonia)), minimum=minimum))
    assert high - low == pytest.approx(fewest / (sum(normal) * sum(pneumonia)))


def _pairs_of_every_merge(normal, pneumonia, minimum):
    for count in range(7):
        for cuts in combinations(range(1, 7), count):
            cells = [(sum(normal[low:high]), sum(pneumonia[low:high])) for low, high in pairwise((0, *cuts, 7))]
            safe = all(n == 0 or n >= minimum for cell in cells for n in cell)
            yield sum(a * b for a, b in cells) if safe else None


# Suppression case by case


@pytest.mark.parametrize("minimum", [-1, 0, 1])
def test_a_minimum_of_one_or_less_returns_the_input(minimum):
    statistics = evaluation([(0.5, 1)], {"a": [0.5]})
    assert suppress(statistics, minimum=minimum) is statistics


def test_small_neighbouring_bins_become_one_cell():
    sent = suppress(evaluation(spread([5, 1, 2], [0, 0, 0, 4])), minimum=3).classification
    assert sent.merged_cells == (ScoreCell(low=1, high=3, normal=3, pneumonia=0),)
    assert sent.score_counts[0][:4] == (5, 0, 3, 0)
    assert sent.score_counts[1][:4] == (0, 0, 0, 4)


def test_a_class_below_the_minimum_withholds_the_classification_table():
    sent = suppress(evaluation([(0.25, 0)] * 9 + [(0.75, 1)] * 4, {"a": [0.5] * 9}), minimum=5)
    assert sent.classification is None
    assert sent.withheld == ("classification:class_below_minimum",)
    assert sent.segmentation == {"a": segmentation([0.5] * 9)}


def test_one_small_confusion_cell_withholds_all_four():
    scored = [(0.25, 0)] * 20 + [(0.75, 0)] * 2 + [(0.75, 1)] * 20 + [(0.25, 1)] * 6
    sent = suppress(evaluation(scored), minimum=5)
    assert sent.classification.confusion is None
    assert "classification.confusion:cell_below_minimum" in sent.withheld


def test_a_kept_confusion_cuts_the_histogram_at_one_half_even_where_a_straddling_cell_would_lose_less():
    counts = [0] * 64, [0] * 64
    counts[0][20] = counts[0][40] = 4
    counts[1][10] = counts[1][50] = 6
    counts[1][31] = counts[1][32] = 2  # joined they would be safe, and cost no pair
    sent = suppress(evaluation(spread(*counts)), minimum=4).classification
    assert sent.confusion == ((4, 4), (8, 8))
    assert [(cell.low, cell.high) for cell in sent.score_cells] == [(10, 32), (32, 51)]


def test_a_confusion_beside_a_cell_that_already_straddles_one_half_is_withheld():
    straddling = ScoreCell(low=31, high=33, normal=0, pneumonia=5)
    given_table = table([(0.25, 0)] * 5 + [(0.5, 1)] * 5).model_copy(update={"merged_cells": (straddling,)})
    statistics = EvaluationStatistics(patients=10, images=10, classification=given_table)
    sent = suppress(statistics, minimum=5).classification
    assert (sent.confusion, sent.class_counts) == (None, (5, 5))


def test_a_confusion_without_errors_is_kept_since_zeros_are_not_hidden():
    sent = suppress(evaluation([(0.25, 0)] * 5 + [(0.75, 1)] * 5), minimum=5)
    assert sent.classification.confusion == ((5, 0), (0, 5))
    assert sent.withheld == ()


def test_few_wrong_answers_withhold_the_calibration_that_would_count_them():
    scored = [(0.25, 0)] * 20 + [(0.75, 0)] * 2 + [(0.75, 1)] * 20
    sent = suppress(evaluation(scored), minimum=5)
    assert sent.classification.calibration is None
    assert sent.withheld == (
        "classification.calibration:cell_below_minimum",
        "classification.confusion:cell_below_minimum",
    )
    assert summarise(sent)["ece"] is None


def test_small_segmentation_tables_are_withheld_by_name():
    sent = suppress(evaluation([], {"a": [0.5] * 4, "b": [0.5] * 5}), minimum=5)
    assert set(sent.segmentation) == set(sent.mean_mask) == {"b"}
    assert sent.withheld == ("mean_mask.a:images_below_minimum", "segmentation.a:images_below_minimum")


@pytest.mark.parametrize(("empty", "kept"), [(0, 0), (1, None), (5, 5), (8, None), (9, 9)])
def test_few_empty_masks_or_few_others_are_not_counted(empty, kept):
    statistics = EvaluationStatistics(
        patients=9, images=9, segmentation={"a": segmentation([0.5] * 9, empty_prediction=empty)}
    )
    sent = suppress(statistics, minimum=4)
    assert sent.segmentation["a"].empty_prediction == kept
    assert sent.withheld == (("segmentation.a.empty:cell_below_minimum",) if kept is None else ())


def test_fewer_patients_than_the_minimum_withhold_everything():
    statistics = EvaluationStatistics(patients=2, images=50, classification=table([(0.25, 0)] * 25 + [(0.75, 1)] * 25))
    sent = suppress(statistics, minimum=5)
    assert sent == EvaluationStatistics(patients=0, images=0, withheld=("all:patients_below_minimum",))


# What a site may claim


def broken(**changes):
    return {**table([(0.25, 0), (0.75, 1)]).model_dump(), **changes}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (Moments, {"count": -1, "total": 0.0, "squares": 0.0}),
        (Moments, {"count": 1, "total": float("nan"), "squares": 1.0}),
        (Moments, {"count": 2, "total": 2.0, "squares": 1.0}),
        (CalibrationBin, {"count": 1, "correct": 2, "confidence_sum": 0.7}),
        (CalibrationBin, {"count": 2, "correct": 1, "confidence_sum": 0.7}),
        (ScoreCell, {"low": 3, "high": 3, "normal": 1, "pneumonia": 1}),
        (ClassificationStatistics, broken(score_sum=float("inf"))),
        (ClassificationStatistics, broken(score_sum=3.0)),
        (ClassificationStatistics, broken(confusion=((2, 0), (0, 1)))),
        (ClassificationStatistics, broken(score_counts=((1,) * 63, (1,) * 64))),
        (
            ClassificationStatistics,
            broken(merged_cells=({"low": 0, "high": 9, "normal": 1, "pneumonia": 0},)),
        ),
        (ClassificationStatistics, broken(patient="name")),
        (SegmentationStatistics, {**segmentation([0.5]).model_dump(), "images": 2}),
        (SegmentationStatistics, {**segmentation([0.5]).model_dump(), "empty_truth": 2}),
        (
            SegmentationStatistics,
            segmentation([0.5]).model_dump() | {"dice": Moments(count=1, total=2.0, squares=4.0)},
        ),
        (EvaluationStatistics, {"patients": 2, "images": 1}),
        (EvaluationStatistics, {"patients": 1, "images": 1, "segmentation": {"a": segmentation([0.5] * 2)}}),
    ],
)
def test_impossible_statistics_are_refused(model, fields):
    with pytest.raises(ValidationError):
        model.model_validate(fields)


def test_statistics_import_neither_torch_nor_numpy():
    code = "import sys, multimix.contract.statistics; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
