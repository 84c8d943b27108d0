"""From predictions to sufficient statistics, and from (summed) statistics to the figures of a report.

Sites run the first half, the server the second (DESIGN, decision 7). Masks are bool [H, W]; 0 is normal, 1 is
pneumonia.

Empty masks. Both empty: Dice, Jaccard and SSIM 1, Hausdorff 0. Exactly one empty: Dice and Jaccard 0,
Hausdorff the image diagonal sqrt(H^2 + W^2) in every percentile, SSIM as computed.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from multimix.contract.statistics import (
    CALIBRATION_BINS,
    MEASURES,
    SCORE_BINS,
    CalibrationBin,
    ClassificationStatistics,
    EvaluationStatistics,
    Moments,
    SegmentationStatistics,
    add_segmentation,
)
from multimix.errors import InputError

Mask = NDArray[np.bool_]
Figures = dict[str, float | None]

SSIM_WINDOW = 7
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_ROUNDING_VARIANCE = 1e-12
"""A smaller variance from float64 sums of values in [0, 1] is rounding and printed as 0."""


def dice(prediction: Mask, truth: Mask) -> float:
    """Return 2 |P and T| / (|P| + |T|)."""
    _check_pair(prediction, truth)
    both, size = _overlap(prediction, truth)
    return 2 * both / size if size else 1.0


def jaccard(prediction: Mask, truth: Mask) -> float:
    """Return |P and T| / |P or T|."""
    _check_pair(prediction, truth)
    both, size = _overlap(prediction, truth)
    return both / (size - both) if size else 1.0


def hausdorff_px(prediction: Mask, truth: Mask, percentile: float = 100.0) -> float:
    """Return the symmetric surface distance in pixels: the larger of the two directed percentiles.

    A mask's surface is its pixels with one of the four neighbours outside the mask or the image. 100 is the
    Hausdorff distance, 95 its usual robust variant as in MONAI (linear percentiles of each direction).
    """
    _check_pair(prediction, truth)
    return _hausdorff(prediction, truth, (percentile,))[0]


def ssim(prediction: Mask, truth: Mask) -> float:
    """Return the mean structural similarity of the masks as images of 0 and 1 (Wang et al. 2004).

    Uniform 7x7 windows inside the image, sample covariance, data range 1, K1 = 0.01, K2 = 0.03. Images are at
    least 7 pixels wide and high.
    """
    _check_pair(prediction, truth)
    in_p, in_t, in_both = (_window_sums(mask) for mask in (prediction, truth, prediction & truth))
    differ = in_p + in_t != 2 * in_both  # elsewhere the windows are equal: a similarity of 1
    n = SSIM_WINDOW**2
    mean_p, mean_t, mean_pt = (pixels[differ] / n for pixels in (in_p, in_t, in_both))
    product, squares = mean_p * mean_t, mean_p**2 + mean_t**2
    sample = n / (n - 1)
    covariance = sample * (mean_pt - product)
    variances = sample * (mean_p + mean_t - squares)  # x^2 = x for x in {0, 1}
    numerator = (2 * product + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    denominator = (squares + _SSIM_C1) * (variances + _SSIM_C2)
    return float(1 + np.sum(numerator / denominator - 1) / differ.size)


def _check_pair(prediction: Mask, truth: Mask) -> None:
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.bool_ or mask.ndim != 2:  # noqa: PLR2004
            message = f"{name} is {mask.dtype} of shape {mask.shape}; give bool [H, W], e.g. probability >= 0.5"
            raise InputError("mask_not_bool", message)
    if prediction.shape != truth.shape:
        message = f"prediction is {prediction.shape} and truth {truth.shape} pixels; give the same size"
        raise InputError("mask_shapes_differ", message)
    if min(truth.shape) < SSIM_WINDOW:
        message = f"masks are {truth.shape} pixels, below {SSIM_WINDOW}x{SSIM_WINDOW}; give larger images"
        raise InputError("mask_too_small", message)


def _overlap(prediction: Mask, truth: Mask) -> tuple[int, int]:
    """Return |P and T| and |P| + |T|."""
    both = np.count_nonzero(prediction & truth)
    return int(both), int(np.count_nonzero(prediction) + np.count_nonzero(truth))


def _window_sums(mask: Mask) -> NDArray[np.uint8]:
    """Return the pixels set in every 7x7 window inside the image, [H - 6, W - 6]; 49 fit in 8 bits."""
    sums = mask.astype(np.uint8)
    for _ in range(2):  # sum over rows, turn, sum over columns, turn back
        length = len(sums) - SSIM_WINDOW + 1
        shifted = (sums[i : i + length] for i in range(SSIM_WINDOW))
        sums = functools.reduce(np.add, shifted).T
    return sums


def _hausdorff(prediction: Mask, truth: Mask, percentiles: Sequence[float]) -> list[float]:
    if not prediction.any() or not truth.any():
        one_empty = bool(prediction.any()) or bool(truth.any())
        return [math.hypot(*truth.shape) if one_empty else 0.0] * len(percentiles)
    box = _bounding_box(prediction | truth)
    surface_p, surface_t = _surface(prediction[box]), _surface(truth[box])
    to_truth = ndimage.distance_transform_edt(~surface_t)[surface_p]
    to_prediction = ndimage.distance_transform_edt(~surface_p)[surface_t]
    directed = np.percentile(to_truth, percentiles), np.percentile(to_prediction, percentiles)
    return [float(distance) for distance in np.maximum(*directed)]


def _bounding_box(mask: Mask) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _surface(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def classification_statistics(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> ClassificationStatistics:
    """Return the statistics of P(pneumonia) `scores` [n] in [0, 1] and `labels` [n] in {0, 1}.

    A score of 0.5 or more is predicted pneumonia. Raises `InputError` for other values or unequal lengths.
    """
    _check_scores(scores, labels)
    score, label = scores.astype(np.float64), labels.astype(np.int64)
    predicted = (score >= 0.5).astype(np.int64)  # noqa: PLR2004
    score_bin = np.minimum((score * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    confusion = np.bincount(2 * label + predicted, minlength=4).tolist()
    return ClassificationStatistics(
        confusion=((confusion[0], confusion[1]), (confusion[2], confusion[3])),
        score_counts=(_histogram(score_bin[label == 0]), _histogram(score_bin[label == 1])),
        calibration=_calibration(np.maximum(score, 1 - score), predicted == label),
        score_sum=float(score.sum()),
        score_square_sum=float(np.square(score).sum()),
    )


def _check_scores(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape:
        message = f"scores have shape {scores.shape}, labels {labels.shape}; give one score and label an image"
        raise InputError("scores_and_labels_differ", message)
    outside = int(np.count_nonzero(~((scores >= 0) & (scores <= 1))))
    if outside:
        raise InputError("score_not_probability", f"{outside} scores are not in [0, 1]; give P(pneumonia)")
    if not np.isin(labels, (0, 1)).all():
        raise InputError("label_not_binary", "labels must be 0 (normal) or 1 (pneumonia); leave others out")


def _histogram(bins: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(np.bincount(bins, minlength=SCORE_BINS).tolist())


def _calibration(confidence: NDArray[np.float64], correct: Mask) -> tuple[CalibrationBin, ...]:
    position = ((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(np.int64)
    bins = np.minimum(position, CALIBRATION_BINS - 1)
    counts, right, sums = (
        np.bincount(bins, weights=weights, minlength=CALIBRATION_BINS)
        for weights in (None, correct.astype(np.float64), confidence)
    )
    return tuple(
        CalibrationBin(count=int(n), correct=int(r), confidence_sum=float(s))
        for n, r, s in zip(counts, right, sums, strict=True)
    )


def segmentation_statistics(predictions: Mask, truths: Mask) -> SegmentationStatistics:
    """Return the statistics of masks bool [n, H, W]; n may be 0."""
    if predictions.shape != truths.shape or truths.ndim != 3:  # noqa: PLR2004
        message = f"predictions are {predictions.shape}, truths {truths.shape}; give two arrays [n, H, W]"
        raise InputError("mask_shapes_differ", message)
    rows = [measures(p, t) for p, t in zip(predictions, truths, strict=True)]
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(MEASURES))
    moments = {
        measure: Moments(count=len(rows), total=float(column.sum()), squares=float(np.square(column).sum()))
        for measure, column in zip(MEASURES, values.T, strict=True)
    }
    return SegmentationStatistics(
        images=len(rows),
        empty_truth=int(np.count_nonzero(~truths.any(axis=(1, 2)))),
        empty_prediction=int(np.count_nonzero(~predictions.any(axis=(1, 2)))),
        **moments,
    )


def measures(prediction: Mask, truth: Mask) -> tuple[float, ...]:
    """Return the values of one image in the order of `MEASURES`."""
    overlaps = dice(prediction, truth), jaccard(prediction, truth)
    return *overlaps, *_hausdorff(prediction, truth, (100.0, 95.0)), ssim(prediction, truth)


def summarise(statistics: EvaluationStatistics, convention: str | None = None) -> Figures:
    """Return the figures of a report: means over images, None where undefined or withheld, never NaN.

    `convention` picks the reference masks; None sums over conventions, one that no site has gives None.
    Hausdorff distances are in pixels. `majority_` figures always predict the more frequent class (normal on a
    tie), `mean_mask_` figures the mean mask. Accuracies and F1, of the model and the majority, cover the
    images with a confusion, which under suppression may be fewer than `labelled_images`.
    """
    baseline = _segmentation_figures(_table(statistics.mean_mask, convention))
    return {
        **_classification_figures(statistics.classification),
        **_segmentation_figures(_table(statistics.segmentation, convention)),
        **{f"mean_mask_{measure}": baseline[measure] for measure in MEASURES},
    }


def _table(tables: dict[str, SegmentationStatistics], convention: str | None) -> SegmentationStatistics | None:
    if convention is not None:
        return tables.get(convention)
    total = None
    for key in sorted(tables):
        total = tables[key] if total is None else add_segmentation(total, tables[key])
    return total


def _segmentation_figures(table: SegmentationStatistics | None) -> Figures:
    if table is None or table.images == 0:
        return {"masked_images": 0.0, "dice_std": None, **dict.fromkeys(MEASURES)}
    means = {measure: table.moments(measure).total / table.images for measure in MEASURES}
    dice_std = _deviation(table.images, table.dice.total, table.dice.squares)
    return {"masked_images": float(table.images), "dice_std": dice_std, **means}


def _deviation(count: int, total: float, squares: float) -> float | None:
    """Return the population standard deviation."""
    if count == 0:
        return None
    variance = squares / count - (total / count) ** 2
    return math.sqrt(variance) if variance > _ROUNDING_VARIANCE else 0.0


_CONFUSION_KEYS = ("accuracy", "balanced_accuracy", "f1_normal", "f1_pneumonia")
_UNKNOWN: Figures = dict.fromkeys(
    (*_CONFUSION_KEYS, *(f"majority_{key}" for key in _CONFUSION_KEYS), "auroc", "auroc_low", "auroc_high")
)


def _classification_figures(table: ClassificationStatistics | None) -> Figures:
    if table is None:
        return {**_UNKNOWN, "ece": None, "score_std": None, "labelled_images": 0.0}
    return {
        **_UNKNOWN,
        **_decision_figures(table),
        **_auroc(table),
        "ece": _calibration_error(table.calibration or ()),
        "score_std": _deviation(table.images, table.score_sum, table.score_square_sum),
        "labelled_images": float(table.images),
    }


def _decision_figures(table: ClassificationStatistics) -> Figures:
    """Return the figures of the model's decisions and of always choosing the more frequent class."""
    confusion = table.confusion
    normal, pneumonia = table.class_counts if confusion is None else (sum(row) for row in confusion)
    majority = ((normal, 0), (pneumonia, 0)) if normal >= pneumonia else ((0, normal), (0, pneumonia))
    figures = {f"majority_{key}": value for key, value in _confusion_figures(majority).items()}
    return figures if confusion is None else {**figures, **_confusion_figures(confusion)}


def _confusion_figures(confusion: tuple[tuple[int, int], tuple[int, int]]) -> Figures:
    (n00, n01), (n10, n11) = confusion
    sensitivity, specificity = _ratio(n11, n10 + n11), _ratio(n00, n00 + n01)
    return {
        "accuracy": _ratio(n00 + n11, n00 + n01 + n10 + n11),
        "balanced_accuracy": _mean(sensitivity, specificity),
        "f1_normal": _ratio(2 * n00, 2 * n00 + n01 + n10),
        "f1_pneumonia": _ratio(2 * n11, 2 * n11 + n01 + n10),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else (a + b) / 2


def _auroc(table: ClassificationStatistics) -> Figures:
    """Return P(pneumonia scores above normal) with pairs of overlapping cells counted 0, half and 1."""
    cells = table.score_cells
    low, high = np.array([c.low for c in cells]), np.array([c.high for c in cells])
    pairs = np.outer([float(c.pneumonia) for c in cells], [float(c.normal) for c in cells])
    total = float(pairs.sum())
    if total == 0:
        return {}
    won = float(pairs[low[:, None] >= high[None, :]].sum()) / total
    lost = float(pairs[high[:, None] <= low[None, :]].sum()) / total
    return {"auroc": (1 + won - lost) / 2, "auroc_low": won, "auroc_high": 1 - lost}


def _calibration_error(bins: Sequence[CalibrationBin]) -> float | None:
    """Return the expected calibration error (Guo et al. 2017); a lower bound where bins were merged."""
    gaps = sum(abs(part.correct - part.confidence_sum) for part in bins)
    return _ratio(gaps, sum(part.count for part in bins))
