"""Answers that need no network: the majority class, the mean mask, and ridge regression on a thumbnail.

A figure that does not beat them says nothing about disease. They are scored image by image like a model.
"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from multimix.contract.statistics import MEASURES
from multimix.data.sampling import Pools
from multimix.data.store import Store
from multimix.evaluation import MASK_THRESHOLD
from sim.experiments.scores import Scores, mask_measures, new_scores
from sim.experiments.sources import ScoredSet

BaselineRow = Literal["majority", "mean-mask", "thumbnail-ridge"]
_THUMBNAIL: Final = 12  # pixels a side
_PENALTY: Final = 10.0  # of the ridge, on standardised pixels
_BATCH: Final = 256
Floats = npt.NDArray[np.float64]


def score_baseline(row: BaselineRow, store: Store, pools: Pools, sets: Sequence[ScoredSet]) -> dict[str, Scores]:
    """Score a baseline, taught by the labels or masks of the pools, on every set, named source/split."""
    if row == "mean-mask":
        mask = _mean_mask(store, pools.labelled_segmentation)
        return {_name(each): _masked(store, each.rows, mask) for each in sets}
    if row == "majority":
        return {_name(each): _classified(store, each.rows, _majority(store, each.rows)) for each in sets}
    ridge = _Ridge(store, pools.labelled_classification)
    return {_name(each): _classified(store, each.rows, ridge.probability(store, each.rows)) for each in sets}


def _name(chosen: ScoredSet) -> str:
    return f"{chosen.name}/{chosen.split}"


def _majority(store: Store, rows: npt.NDArray[np.int64]) -> Floats:
    """Return the score of always answering the more frequent class of the set itself (normal on a tie)."""
    label = store.label[rows]
    return np.full(len(rows), float((label == 1).sum() > (label == 0).sum()))


class _Ridge:
    """Linear regression of the label on 12 x 12 standardised pixels."""

    def __init__(self, store: Store, rows: npt.NDArray[np.int64]) -> None:
        pixels, target = _thumbnails(store, rows), 2.0 * store.label[rows] - 1.0
        self.mean, self.deviation = pixels.mean(axis=0), pixels.std(axis=0) + 1e-6
        features = (pixels - self.mean) / self.deviation
        self.offset = target.mean()
        gram = features.T @ features + _PENALTY * np.eye(features.shape[1])
        self.weights: Floats = np.linalg.solve(gram, features.T @ (target - self.offset))

    def probability(self, store: Store, rows: npt.NDArray[np.int64]) -> Floats:
        """Return the regression as a score in [0, 1], one half where it is undecided."""
        value = (_thumbnails(store, rows) - self.mean) / self.deviation @ self.weights + self.offset
        probability: Floats = 1.0 / (1.0 + np.exp(-2.0 * value))
        return probability


def _thumbnails(store: Store, rows: npt.NDArray[np.int64]) -> Floats:
    parts = [
        torch.nn.functional.adaptive_avg_pool2d(store.load_images(rows[i : i + _BATCH]), _THUMBNAIL).flatten(1).numpy()
        for i in range(0, len(rows), _BATCH)
    ]
    return np.concatenate([np.empty((0, _THUMBNAIL**2)), *parts]).astype(np.float64)


def _mean_mask(store: Store, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    total = np.zeros((store.image_size, store.image_size))
    for i in range(0, len(rows), _BATCH):
        total += store.load_masks(rows[i : i + _BATCH])[:, 0].double().sum(dim=0).numpy()
    mask: npt.NDArray[np.bool_] = total / max(1, len(rows)) >= MASK_THRESHOLD
    return mask


def _classified(store: Store, rows: npt.NDArray[np.int64], probability: Floats) -> Scores:
    return new_scores(store, rows, probability, np.full((len(rows), len(MEASURES)), np.nan))


def _masked(store: Store, rows: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> Scores:
    masks = np.broadcast_to(mask, (len(rows), *mask.shape))
    return new_scores(store, rows, np.full(len(rows), np.nan), mask_measures(store, rows, masks))
