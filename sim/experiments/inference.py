"""Intervals and paired tests over patients: what a difference between two rows is worth.

The unit that is drawn is the patient, with all images. Several seeds of a row are several models of the same patients:
a figure is the mean over them, and a draw of patients is the same for all.

    interval   percentile bootstrap over patients (Efron 1979)
    test       under the null hypothesis a patient's predictions of the two rows may be exchanged, those of an AUROC as
               ranks, because a difference of scale alone is none (Venkatraman and Begg 1996); exchanges end early where
               the difference is plainly nothing (Besag and Clifford 1991)
    family     Holm's step-down correction (1979)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from multimix.config import Frozen
from multimix.contract.statistics import CALIBRATION_BINS, MEASURES
from multimix.randomness import stream
from sim.experiments.scores import Scores

REPLICATES: Final = 1000
_EXCHANGES: Final = 20  # a draw of patients: a p-value has to be small enough for Holm's correction of a large family
_ENOUGH: Final = 50  # exchanges as extreme as the difference itself: p is then known well enough
_LEAST_PRINTED: Final = 0.0005
_LEVEL: Final = 0.95
_THRESHOLD: Final = 0.5

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Scores, Floats], float]
"""From scores and the weight of each image to a figure; NaN where it is undefined."""


class Estimate(Frozen):
    """A figure with its 95 % interval over patients; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Comparison(Frozen):
    """The difference first - second on the same patients, its 95 % interval and the p-value of the paired test."""

    difference: float
    low: float
    high: float
    p: float
    seeds: int


def auroc(scores: Scores, weight: Floats) -> float:
    """Return the probability that a pneumonia scores above a normal, ties counting half."""
    chosen = scores.labelled
    probability, label, w = scores.probability[chosen], scores.label[chosen], weight[chosen]
    order = np.argsort(probability, kind="stable")
    _, tie = np.unique(probability[order], return_inverse=True)
    normal, pneumonia = (np.bincount(tie, np.where(label[order] == c, w[order], 0.0)) for c in (0, 1))
    pairs = normal.sum() * pneumonia.sum()
    below = np.cumsum(normal) - normal
    return float((pneumonia * (below + normal / 2)).sum() / pairs) if pairs else float("nan")


def accuracy(scores: Scores, weight: Floats) -> float:
    """Return the share of right answers at a threshold of one half."""
    chosen = scores.labelled
    right = (scores.probability[chosen] >= _THRESHOLD) == (scores.label[chosen] == 1)
    return _mean(right, weight[chosen])


def balanced_accuracy(scores: Scores, weight: Floats) -> float:
    """Return the mean of sensitivity and specificity."""
    chosen = scores.labelled
    right = (scores.probability[chosen] >= _THRESHOLD) == (scores.label[chosen] == 1)
    label, w = scores.label[chosen], weight[chosen]
    return float(np.mean([_mean(right[label == c], w[label == c]) for c in (0, 1)]))


def f1(scores: Scores, weight: Floats, *, positive: int) -> float:
    """Return the F1 of one class."""
    chosen = scores.labelled
    w, truth = weight[chosen], scores.label[chosen] == positive
    predicted = (scores.probability[chosen] >= _THRESHOLD) == (positive == 1)
    total = w[truth].sum() + w[predicted].sum()
    return float(2 * w[truth & predicted].sum() / total) if total else float("nan")


def score_std(scores: Scores, weight: Floats) -> float:
    """Return the standard deviation of the scores: near zero, the classifier has collapsed."""
    chosen = scores.labelled
    p, w = scores.probability[chosen], weight[chosen]
    return float(np.sqrt(max(0.0, _mean(np.square(p), w) - _mean(p, w) ** 2))) if w.sum() else float("nan")


def ece(scores: Scores, weight: Floats) -> float:
    """Return the expected calibration error over 15 bins of confidence (Guo et al. 2017)."""
    chosen = scores.labelled
    p, w = scores.probability[chosen], weight[chosen]
    confidence = np.maximum(p, 1 - p)
    right = (p >= _THRESHOLD) == (scores.label[chosen] == 1)
    place = np.minimum(((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(place, w * right, CALIBRATION_BINS) - np.bincount(place, w * confidence, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / w.sum()) if w.sum() else float("nan")


def _mean(values: npt.NDArray[np.bool_] | Floats, weight: Floats) -> float:
    total = weight.sum()
    return float(np.dot(values, weight) / total) if total else float("nan")


def _measure(name: str) -> Statistic:
    def statistic(scores: Scores, weight: Floats) -> float:
        chosen = scores.masked
        return _mean(scores.measure(name)[chosen], weight[chosen])

    return statistic


STATISTICS: Final[dict[str, Statistic]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "auroc": auroc,
    "f1_normal": lambda scores, weight: f1(scores, weight, positive=0),
    "f1_pneumonia": lambda scores, weight: f1(scores, weight, positive=1),
    "score_std": score_std,
    "ece": ece,
    **{name: _measure(name) for name in MEASURES},
}


@dataclass(frozen=True)
class _Patients:
    """The images of each patient of a set."""

    index: npt.NDArray[np.int64]  # [n] patient number of each image
    count: int

    def weights(self, drawn: npt.NDArray[np.int64]) -> Floats:
        """Return the weight of each image where each patient was drawn so many times."""
        return drawn[self.index].astype(np.float64)


def _patients(scores: Scores) -> _Patients:
    people, index = np.unique(scores.patient, return_inverse=True)
    return _Patients(index, len(people))


def estimate(models: Sequence[Scores], metric: str, *, replicates: int = REPLICATES, seed: int = 0) -> Estimate:
    """Return the mean of a metric over models of the same patients, and its interval.

    Raises:
        ValueError: the models were not scored on the same images.
    """
    _check_same(models)
    statistic, everyone = STATISTICS[metric], np.ones(len(models[0].row))
    value = _over_models(statistic, models, everyone)
    if np.isnan(value):
        return Estimate(value=None)
    patients = _patients(models[0])
    rng = stream("bootstrap", seed)
    drawn = [_draw(rng, patients.count) for _ in range(replicates)]
    values = np.array([_over_models(statistic, models, patients.weights(d)) for d in drawn])
    low, high = _bounds(values)
    return Estimate(value=value, low=low, high=high)


def compare(
    first: Sequence[Scores], second: Sequence[Scores], metric: str, *, replicates: int = REPLICATES, seed: int = 0
) -> Comparison | None:
    """Return how much higher the metric of `first` is, model by model; None where it is undefined for one of them.

    The interval takes `replicates` draws, the test up to 20 times as many exchanges.

    Raises:
        ValueError: there are not as many models of both, or they were not scored on the same images.
    """
    if len(first) != len(second):
        raise ValueError("a paired comparison needs as many models of both rows")
    _check_same([*first, *second])
    statistic, everyone = STATISTICS[metric], np.ones(len(first[0].row))
    difference = _over_models(statistic, first, everyone) - _over_models(statistic, second, everyone)
    if np.isnan(difference):
        return None
    patients, rng = _patients(first[0]), stream("paired", seed)
    resampled = np.empty(replicates)
    for i in range(replicates):
        weight = patients.weights(_draw(rng, patients.count))
        resampled[i] = _over_models(statistic, first, weight) - _over_models(statistic, second, weight)
    low, high = _bounds(resampled)
    if metric == "auroc":
        first, second = ([_ranked(each) for each in models] for models in (first, second))
    p = _exchange_test(first, second, statistic, difference, exchanges=_EXCHANGES * replicates, seed=seed)
    return Comparison(difference=difference, low=low, high=high, p=p, seeds=len(first))


def _exchange_test(
    first: Sequence[Scores],
    second: Sequence[Scores],
    statistic: Statistic,
    difference: float,
    *,
    exchanges: int,
    seed: int,
) -> float:
    """Return how often exchanging the two rows' answers for patients at random gives as large a difference."""
    patients, rng = _patients(first[0]), stream("exchanged", seed)
    everyone, extreme = np.ones(len(first[0].row)), 0
    for done in range(1, exchanges + 1):
        flip = (rng.random(patients.count) < 0.5)[patients.index]  # noqa: PLR2004  (a fair coin)
        pairs = [_exchanged(a, b, flip) for a, b in zip(first, second, strict=True)]
        found = _over_models(statistic, [a for a, _ in pairs], everyone) - _over_models(
            statistic, [b for _, b in pairs], everyone
        )
        extreme += abs(found) >= abs(difference) - 1e-12
        if extreme == _ENOUGH:
            return extreme / done
    return (extreme + 1) / (exchanges + 1)


def _ranked(scores: Scores) -> Scores:
    """Return scores with each labelled image's probability replaced by its rank among them; ties share theirs."""
    ranks = np.full(len(scores.row), np.nan)
    ranks[scores.labelled] = rankdata(scores.probability[scores.labelled])
    return replace(scores, probability=ranks)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of a family, corrected so that one below 0.05 is wrong in 5 % of families at most."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, position in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[position])
        corrected[position] = min(1.0, highest)
    return corrected.tolist()


def p_in_words(p: float) -> str:
    """Return a p-value as a table prints it: never as zero."""
    return f"{p:.3f}" if p >= _LEAST_PRINTED else "<0.001"


def _over_models(statistic: Statistic, models: Sequence[Scores], weight: Floats) -> float:
    return float(np.mean([statistic(scores, weight) for scores in models]))


def _draw(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    return np.bincount(rng.integers(0, count, count), minlength=count)


def _bounds(values: Floats) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _exchanged(a: Scores, b: Scores, flip: npt.NDArray[np.bool_]) -> tuple[Scores, Scores]:
    def mixed(x: Scores, y: Scores) -> Scores:
        return Scores(
            row=x.row,
            patient=x.patient,
            label=x.label,
            probability=np.where(flip, y.probability, x.probability),
            measures=np.where(flip[:, None], y.measures, x.measures),
        )

    return mixed(a, b), mixed(b, a)


def _check_same(models: Sequence[Scores]) -> None:
    if not models or any(not np.array_equal(models[0].row, other.row) for other in models):
        raise ValueError("the models were not scored on the same images")
