"""Sufficient statistics of an evaluation: what a hospital sends instead of averages or predictions.

Counts and sums add over sites, so that pooled accuracy, AUROC or Dice are those of the pooled images. A score
histogram gives AUROC up to ties within a bin; the ties are printed as bounds. `multimix.metrics` makes these
from images and turns them into figures. No numpy and no torch here.

Small cells. `suppress` applies a site's minimum cohort before anything leaves. Cells count images; "safe"
means 0 or at least the minimum (zeros are not hidden).

* Scores: neighbouring bins are merged until every cell is safe for both classes. Of all such merges it takes
  the one that puts fewest (normal, pneumonia) pairs into a common cell: the narrowest AUROC interval.
* Confusion: kept only if all four cells are safe and the histogram is cut at 0.5. Class totals are public
  from the histogram, so one hidden cell of a row would be found by subtraction: it is all four or none. And
  beside a score cell that straddles 0.5, a kept confusion would let that cell be divided: hence the cut.
* Calibration: bins merged until correct and wrong answers are both safe in each; withheld where that is
  impossible, since its totals would give a confusion cell away. Merging can only lower the calibration error.
* A class below the minimum (0 is below it) withholds the classification table, a segmentation table below it
  is withheld, a small count of empty masks is withheld, fewer patients than the minimum withhold everything.

Not closed: several images of one patient count several times; calibration edges (1/30) and score edges
(1/64) do not coincide, so the difference of the two can concern fewer images than the minimum; and so can
the difference of two evaluations of a site that has grown by a few images in between.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCORE_BINS = 64
"""Histogram of P(pneumonia) on [0, 1]; bin i is [i/64, (i+1)/64), the last one closed."""

THRESHOLD_BIN = SCORE_BINS // 2
"""The edge at 0.5: a score in this bin or above is predicted pneumonia."""

CALIBRATION_BINS = 15
"""Confidence of the predicted class on [0.5, 1]."""

MEASURES = ("dice", "jaccard", "hausdorff_px", "hausdorff95_px", "ssim")

_ROUNDING = 1e-6
"""Slack when sums of floats are checked against a bound."""

Count = Annotated[int, Field(ge=0, le=2**53)]
Sum = Annotated[float, Field(ge=0)]
Histogram = Annotated[tuple[Count, ...], Field(min_length=SCORE_BINS, max_length=SCORE_BINS)]
Confusion = tuple[tuple[Count, Count], tuple[Count, Count]]
Convention = Annotated[str, Field(min_length=1, max_length=64)]
Value = TypeVar("Value")


class _Statistics(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _require(holds: bool, message: str) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(message)


class ScoreCell(_Statistics):
    """Images of each class with a score in bins `low` to `high` - 1."""

    low: Annotated[int, Field(ge=0, lt=SCORE_BINS)]
    high: Annotated[int, Field(gt=0, le=SCORE_BINS)]
    normal: Count
    pneumonia: Count

    @property
    def representative(self) -> int:
        """The bin of `score_counts` that holds the cell's counts."""
        return _representative(self.low, self.high)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.low < self.high, "a score cell must have low < high")
        return self


class CalibrationBin(_Statistics):
    """Images whose predicted class had a confidence in one bin."""

    count: Count
    correct: Count
    confidence_sum: Sum

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.correct <= self.count, "more correct answers than images in a calibration bin")
        low, high = 0.5 * self.count * (1 - _ROUNDING), self.count * (1 + _ROUNDING)
        _require(low <= self.confidence_sum <= high, "confidence_sum must be in [count / 2, count]")
        return self


Calibration = Annotated[
    tuple[CalibrationBin, ...], Field(min_length=CALIBRATION_BINS, max_length=CALIBRATION_BINS)
]


class ClassificationStatistics(_Statistics):
    """Labelled images, scored.

    `confusion` is [true][predicted] with 0 normal, 1 pneumonia; `score_counts` holds a histogram per class.
    Where suppression merged bins, the counts of the merged cell stand in its `representative` bin, and
    `merged_cells` says which bins they come from. `confusion` and `calibration` are None where withheld;
    after `add` they cover the sites that gave them. The score sums show a collapse to one score.
    """

    confusion: Confusion | None
    score_counts: tuple[Histogram, Histogram]
    merged_cells: Annotated[tuple[ScoreCell, ...], Field(max_length=SCORE_BINS**2 // 2)] = ()
    calibration: Calibration | None
    score_sum: Sum
    score_square_sum: Sum

    @property
    def class_counts(self) -> tuple[int, int]:
        """Images that are normal, and pneumonia."""
        return sum(self.score_counts[0]), sum(self.score_counts[1])

    @property
    def images(self) -> int:
        """Labelled images."""
        return sum(self.class_counts)

    @property
    def score_cells(self) -> tuple[ScoreCell, ...]:
        """Every non-empty cell, one bin wide or merged; the cells of different sites may overlap."""
        normal, pneumonia = (list(counts) for counts in self.score_counts)
        for cell in self.merged_cells:
            normal[cell.representative] -= cell.normal
            pneumonia[cell.representative] -= cell.pneumonia
        single = (
            ScoreCell(low=i, high=i + 1, normal=normal[i], pneumonia=pneumonia[i])
            for i in range(SCORE_BINS)
            if normal[i] or pneumonia[i]
        )
        return (*single, *self.merged_cells)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.score_cells  # raises where a merged cell holds more than its representative bin
        limit = self.images * (1 + _ROUNDING)
        _require(self.score_sum <= limit, "score_sum exceeds the number of images")
        _require(self.score_square_sum <= limit, "score_square_sum exceeds the number of images")
        for row, count in zip(self.confusion or ((0, 0), (0, 0)), self.class_counts, strict=True):
            _require(sum(row) <= count, "confusion holds more images of a class than score_counts")
        if self.calibration is not None:
            answers = sum(part.count for part in self.calibration)
            _require(answers <= self.images, "calibration holds more images than score_counts")
        return self


class Moments(_Statistics):
    """Number, sum and sum of squares of a measure over images; the sum may be negative (SSIM)."""

    count: Count
    total: float
    squares: Sum

    @model_validator(mode="after")
    def _check(self) -> Self:
        bound = math.sqrt(self.count) * math.sqrt(self.squares)  # Cauchy and Schwarz
        possible = abs(self.total) <= bound * (1 + _ROUNDING) + _ROUNDING
        _require(possible, "no values have this count, total and squares")
        return self


class SegmentationStatistics(_Statistics):
    """Images with a reference mask, segmented; one `Moments` a measure, Hausdorff distances in pixels.

    `empty_truth` and `empty_prediction` are None where withheld, and in a sum with a site that withheld them.
    """

    images: Count
    empty_truth: Count | None
    empty_prediction: Count | None
    dice: Moments
    jaccard: Moments
    hausdorff_px: Moments
    hausdorff95_px: Moments
    ssim: Moments

    def moments(self, measure: str) -> Moments:
        """Return the moments of one of `MEASURES`."""
        moments: Moments = getattr(self, measure)
        return moments

    @model_validator(mode="after")
    def _check(self) -> Self:
        for empty in (self.empty_truth, self.empty_prediction):
            _require((empty or 0) <= self.images, "more empty masks than images")
        for measure in MEASURES:
            _require(self.moments(measure).count == self.images, f"{measure}.count must equal images")
        for measure in ("dice", "jaccard", "ssim"):
            total = self.moments(measure).total
            _require(total <= self.images * (1 + _ROUNDING), f"the mean of {measure} exceeds 1")
        return self


class EvaluationStatistics(_Statistics):
    """One site's evaluation, or a sum of several.

    `segmentation` is keyed by the convention of the reference masks; `mean_mask` holds the same measures for
    the baseline that always predicts the mean mask. `withheld` lists what suppression removed as
    `table:reason`.
    """

    patients: Count
    images: Count
    classification: ClassificationStatistics | None = None
    segmentation: dict[Convention, SegmentationStatistics] = {}
    mean_mask: dict[Convention, SegmentationStatistics] = {}
    withheld: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.patients <= self.images, "more patients than images")
        labelled = self.classification.images if self.classification else 0
        _require(labelled <= self.images, "more labelled images than images")
        for table in (*self.segmentation.values(), *self.mean_mask.values()):
            _require(table.images <= self.images, "more segmented images than images")
        return self


def add(a: EvaluationStatistics, b: EvaluationStatistics) -> EvaluationStatistics:
    """Return the statistics of both together; commutative, associative up to the rounding of float sums.

    A table that only one side has is taken as it is: figures cover the sites that gave them.
    """
    return EvaluationStatistics(
        patients=a.patients + b.patients,
        images=a.images + b.images,
        classification=_either(a.classification, b.classification, _add_classification),
        segmentation=_add_tables(a.segmentation, b.segmentation),
        mean_mask=_add_tables(a.mean_mask, b.mean_mask),
        withheld=tuple(sorted({*a.withheld, *b.withheld})),
    )


def _either(a: Value | None, b: Value | None, plus: Callable[[Value, Value], Value]) -> Value | None:
    """Sum with None as the zero."""
    if a is None or b is None:
        return b if a is None else a
    return plus(a, b)


def _add_classification(a: ClassificationStatistics, b: ClassificationStatistics) -> ClassificationStatistics:
    return ClassificationStatistics(
        confusion=_either(a.confusion, b.confusion, _add_confusion),
        score_counts=(
            _add_counts(a.score_counts[0], b.score_counts[0]),
            _add_counts(a.score_counts[1], b.score_counts[1]),
        ),
        merged_cells=_add_cells((*a.merged_cells, *b.merged_cells)),
        calibration=_either(a.calibration, b.calibration, _add_calibration),
        score_sum=a.score_sum + b.score_sum,
        score_square_sum=a.score_square_sum + b.score_square_sum,
    )


def _add_confusion(a: Confusion, b: Confusion) -> Confusion:
    (a00, a01), (a10, a11) = a
    (b00, b01), (b10, b11) = b
    return (a00 + b00, a01 + b01), (a10 + b10, a11 + b11)


def _add_counts(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _add_cells(cells: Sequence[ScoreCell]) -> tuple[ScoreCell, ...]:
    """Sum cells over the same bins, in the order of their bins."""
    counts: dict[tuple[int, int], tuple[int, int]] = {}
    for cell in cells:
        normal, pneumonia = counts.get((cell.low, cell.high), (0, 0))
        counts[cell.low, cell.high] = (normal + cell.normal, pneumonia + cell.pneumonia)
    return tuple(
        ScoreCell(low=low, high=high, normal=normal, pneumonia=pneumonia)
        for (low, high), (normal, pneumonia) in sorted(counts.items())
    )


def _add_bins(bins: Sequence[CalibrationBin]) -> CalibrationBin:
    return CalibrationBin(
        count=sum(part.count for part in bins),
        correct=sum(part.correct for part in bins),
        confidence_sum=sum(part.confidence_sum for part in bins),
    )


def _add_calibration(a: Calibration, b: Calibration) -> Calibration:
    return tuple(_add_bins(pair) for pair in zip(a, b, strict=True))


def _add_tables(
    a: dict[str, SegmentationStatistics], b: dict[str, SegmentationStatistics]
) -> dict[str, SegmentationStatistics]:
    tables = {key: _either(a.get(key), b.get(key), add_segmentation) for key in sorted({*a, *b})}
    return {key: table for key, table in tables.items() if table is not None}


def add_segmentation(a: SegmentationStatistics, b: SegmentationStatistics) -> SegmentationStatistics:
    """Return the statistics of both tables together."""
    return SegmentationStatistics(
        images=a.images + b.images,
        empty_truth=_known_sum(a.empty_truth, b.empty_truth),
        empty_prediction=_known_sum(a.empty_prediction, b.empty_prediction),
        **{measure: _add_moments(a.moments(measure), b.moments(measure)) for measure in MEASURES},
    )


def _known_sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _add_moments(a: Moments, b: Moments) -> Moments:
    return Moments(count=a.count + b.count, total=a.total + b.total, squares=a.squares + b.squares)


def _representative(low: int, high: int) -> int:
    return (low + high) // 2


def suppress(statistics: EvaluationStatistics, *, minimum: int) -> EvaluationStatistics:
    """Return what may leave a site whose smallest cell is `minimum`, by the rules at the top of this file.

    Totals are kept in every table that is not withheld. A `minimum` of 1 or less returns the input itself.
    """
    if minimum <= 1:
        return statistics
    withheld = set(statistics.withheld)
    if statistics.patients < minimum:
        return EvaluationStatistics(
            patients=statistics.patients,
            images=statistics.images,
            withheld=tuple(sorted({*withheld, "all:patients_below_minimum"})),
        )
    return statistics.model_copy(
        update={
            "classification": _suppress_classification(statistics.classification, minimum, withheld),
            "segmentation": _suppress_tables("segmentation", statistics.segmentation, minimum, withheld),
            "mean_mask": _suppress_tables("mean_mask", statistics.mean_mask, minimum, withheld),
            "withheld": tuple(sorted(withheld)),
        }
    )


def _suppress_classification(
    table: ClassificationStatistics | None, minimum: int, withheld: set[str]
) -> ClassificationStatistics | None:
    if table is None:
        return None
    if min(table.class_counts) < minimum:
        withheld.add("classification:class_below_minimum")
        return None
    confusion = table.confusion
    if confusion is not None and not _may_publish(confusion, table, minimum):
        withheld.add("classification.confusion:cell_below_minimum")
        confusion = None
    calibration = _merge_calibration(table.calibration, minimum) if table.calibration is not None else None
    if calibration is None and table.calibration is not None:
        withheld.add("classification.calibration:cell_below_minimum")
    cells = _merge_scores(table, minimum, cut=confusion is not None)
    counts = [[0] * SCORE_BINS, [0] * SCORE_BINS]
    for cell in cells:
        counts[0][cell.representative] = cell.normal
        counts[1][cell.representative] = cell.pneumonia
    return ClassificationStatistics(
        confusion=confusion,
        score_counts=(tuple(counts[0]), tuple(counts[1])),
        merged_cells=tuple(cell for cell in cells if cell.high - cell.low > 1),
        calibration=calibration,
        score_sum=table.score_sum,
        score_square_sum=table.score_square_sum,
    )


def _safe(count: int, minimum: int) -> bool:
    return count == 0 or count >= minimum


def _may_publish(confusion: Confusion, table: ClassificationStatistics, minimum: int) -> bool:
    """Whether all four cells are safe and are those of the histogram cut at 0.5."""
    halves = tuple((sum(row[:THRESHOLD_BIN]), sum(row[THRESHOLD_BIN:])) for row in table.score_counts)
    straddled = any(cell.low < THRESHOLD_BIN < cell.high for cell in table.merged_cells)
    return not straddled and halves == confusion and all(_safe(n, minimum) for row in confusion for n in row)


def _merge_scores(table: ClassificationStatistics, minimum: int, *, cut: bool) -> list[ScoreCell]:
    """Return the non-empty cells after merging; with `cut`, none straddles 0.5."""
    normal, pneumonia = table.score_counts
    inside = {edge for cell in table.merged_cells for edge in range(cell.low + 1, cell.high)}
    edges = [edge for edge in range(SCORE_BINS + 1) if edge not in inside]
    halves = [edges]
    if cut:
        halves = [[e for e in edges if e <= THRESHOLD_BIN], [e for e in edges if e >= THRESHOLD_BIN]]
    kept = [_merge(normal, pneumonia, edges=half, minimum=minimum) or [] for half in halves]
    cells = (
        ScoreCell(low=low, high=high, normal=sum(normal[low:high]), pneumonia=sum(pneumonia[low:high]))
        for half in kept
        for low, high in pairwise(half)
    )
    return [cell for cell in cells if cell.normal or cell.pneumonia]


def _merge_calibration(bins: Calibration, minimum: int) -> Calibration | None:
    correct = [part.correct for part in bins]
    wrong = [part.count - part.correct for part in bins]
    edges = _merge(correct, wrong, edges=range(CALIBRATION_BINS + 1), minimum=minimum)
    if edges is None:
        return None
    merged = [CalibrationBin(count=0, correct=0, confidence_sum=0.0)] * CALIBRATION_BINS
    for low, high in pairwise(edges):
        merged[_representative(low, high)] = _add_bins(bins[low:high])
    return tuple(merged)


def _merge(
    first: Sequence[int], second: Sequence[int], *, edges: Sequence[int], minimum: int
) -> list[int] | None:
    """Return the edges of safe cells of two histograms that put fewest (first, second) pairs into one cell.

    Among equals there are most cells. `edges` are those allowed, the first and last always taken; None where
    no choice is safe. Dynamic programme over the position of the last cut.
    """
    below = [list(accumulate(counts, initial=0)) for counts in (first, second)]
    best: dict[int, tuple[int, int, list[int]]] = {edges[0]: (0, 0, [edges[0]])}
    for high in edges[1:]:
        ways = []
        for low, (pairs, cells, cuts) in best.items():
            a, b = (counts[high] - counts[low] for counts in below)
            if _safe(a, minimum) and _safe(b, minimum):
                ways.append((pairs + a * b, cells - 1, [*cuts, high]))
        if ways:
            best[high] = min(ways)
    return best[edges[-1]][2] if edges[-1] in best else None


def _suppress_tables(
    name: str, tables: dict[str, SegmentationStatistics], minimum: int, withheld: set[str]
) -> dict[str, SegmentationStatistics]:
    kept = {}
    for convention, table in tables.items():
        if table.images < minimum:
            withheld.add(f"{name}.{convention}:images_below_minimum")
            continue
        kept[convention] = table.model_copy(
            update={
                key: None
                for key in ("empty_truth", "empty_prediction")
                if not _empty_safe(table, key, minimum)
            }
        )
        if kept[convention] != table:
            withheld.add(f"{name}.{convention}.empty:cell_below_minimum")
    return kept


def _empty_safe(table: SegmentationStatistics, key: str, minimum: int) -> bool:
    """Whether the images with an empty mask, and those without, may be counted."""
    empty: int | None = getattr(table, key)
    return empty is None or (_safe(empty, minimum) and _safe(table.images - empty, minimum))
