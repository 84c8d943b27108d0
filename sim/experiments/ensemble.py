"""Several models as one: the mean of their probabilities, for the class and for every pixel of the mask."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from multimix.data.store import Store
from multimix.evaluation import Prediction, predict
from multimix.network import MultiMixNetwork
from sim.experiments.scores import Scores, scored
from sim.experiments.sources import ScoredSet

_BATCH: Final = 16


def score_ensemble(
    classifiers: Sequence[MultiMixNetwork],
    segmenters: Sequence[MultiMixNetwork],
    store: Store,
    sets: Sequence[ScoredSet],
) -> dict[str, Scores]:
    """Score the mean of models on every set, named source/split; each list answers the task it was trained for."""
    return {
        f"{each.name}/{each.split}": scored(store, each, _answers(classifiers, segmenters, store, each.rows))
        for each in sets
    }


def _answers(
    classifiers: Sequence[MultiMixNetwork],
    segmenters: Sequence[MultiMixNetwork],
    store: Store,
    rows: npt.NDArray[np.int64],
) -> Iterator[tuple[npt.NDArray[np.int64], Prediction]]:
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        images = store.load_images(part)
        classes = [predict(network, images).pneumonia for network in classifiers]
        masks = [predict(network, images).mask for network in segmenters]
        yield part, Prediction(pneumonia=_mean(classes), mask=_mean(masks), saliency=None)


def _mean(answers: Sequence[npt.NDArray[np.float64] | None]) -> npt.NDArray[np.float64] | None:
    given = [answer for answer in answers if answer is not None]
    return np.mean(given, axis=0) if given else None
