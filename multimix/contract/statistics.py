"""Sufficient statistics of an evaluation: what a hospital sends instead of averages or predictions.

Counts and sums add over sites, so that pooled accuracy, AUROC or Dice are those of the pooled images. A score
histogram gives AUROC up to ties within a bin; the ties are printed as bounds. `multimix.metrics` makes these
from images and turns them into figures. No numpy and no torch here.

`multimix.contract.suppression` applies a site's minimum cohort before anything leaves.
"""

import math
from collections.abc import Callable, Sequence
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
Sum = Annotated[float, Field(ge=0, le=1e15)]  # far above any honest site; sums of sums stay finite
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
        return representative_bin(self.low, self.high)

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


Calibration = Annotated[tuple[CalibrationBin, ...], Field(min_length=CALIBRATION_BINS, max_length=CALIBRATION_BINS)]


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


def add_bins(bins: Sequence[CalibrationBin]) -> CalibrationBin:
    """Add calibration bins into one."""
    return CalibrationBin(
        count=sum(part.count for part in bins),
        correct=sum(part.correct for part in bins),
        confidence_sum=sum(part.confidence_sum for part in bins),
    )


def _add_calibration(a: Calibration, b: Calibration) -> Calibration:
    return tuple(add_bins(pair) for pair in zip(a, b, strict=True))


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


def representative_bin(low: int, high: int) -> int:
    """Return the score bin in which the counts of the merged bins [low, high) stand."""
    return (low + high) // 2
