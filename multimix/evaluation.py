"""Scoring weights on a site's images: predictions in, sufficient statistics out."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from multimix.contract.messages import MEAN_MASK_SIDE
from multimix.contract.statistics import EvaluationStatistics, SegmentationStatistics, add_segmentation
from multimix.data.store import Store
from multimix.metrics import classification_statistics, segmentation_statistics
from multimix.network import CLASSES, MultiMixNetwork
from multimix.saliency import view

_BATCH = 16
_PNEUMONIA = CLASSES.index("pneumonia")
MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class Prediction:
    """What the model says about a batch of images."""

    pneumonia: np.ndarray | None  # [n] probability
    mask: np.ndarray | None  # [n, S, S] probability
    saliency: np.ndarray | None  # [n, S, S]


def predict(network: MultiMixNetwork, images: torch.Tensor, *, masks: bool = True) -> Prediction:
    """Predict for images [n, 1, S, S] in [0, 1]; deterministic. Without `masks` the class alone, much faster."""
    device = next(network.parameters()).device
    if not masks:
        return _classes(network, images.to(device))
    viewed = view(network, images.to(device))
    with torch.no_grad():
        mask = network.decode(viewed.levels, viewed.bridge).sigmoid() if network.decoder is not None else None
    scores = viewed.class_logits.softmax(dim=1)[:, _PNEUMONIA] if viewed.class_logits is not None else None
    saliency = viewed.saliency
    return Prediction(
        pneumonia=scores.double().cpu().numpy() if scores is not None else None,
        mask=mask[:, 0].cpu().numpy() if mask is not None else None,
        saliency=saliency[:, 0].cpu().numpy() if saliency is not None else None,
    )


def _classes(network: MultiMixNetwork, images: torch.Tensor) -> Prediction:
    scores = None
    if network.classifier is not None:
        with torch.no_grad():
            scores = network.classify(network.encode(images)).softmax(dim=1)[:, _PNEUMONIA].double().cpu().numpy()
    return Prediction(pneumonia=scores, mask=None, saliency=None)


@dataclass
class ModelTime:
    """How long the model itself took in an evaluation; the rest is loading and bookkeeping."""

    model_s: float = 0.0


def predictions(
    network: MultiMixNetwork, store: Store, rows: np.ndarray, time_spent: ModelTime, *, every_mask: bool = False
) -> Iterator[tuple[np.ndarray, Prediction]]:
    """Predict for rows of a store, some at a time; masks only where one of these rows has a mask to compare with.

    With `every_mask` they are drawn for all.
    """
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        images = store.load_images(part)
        started = time.perf_counter()
        prediction = predict(network, images, masks=every_mask or bool((store.mask_row[part] >= 0).any()))
        time_spent.model_s += time.perf_counter() - started
        yield part, prediction


def evaluate(
    network: MultiMixNetwork,
    store: Store,
    rows: np.ndarray,
    *,
    mean_mask: np.ndarray | None = None,
    time_spent: ModelTime | None = None,
) -> EvaluationStatistics:
    """Score the network on rows of a store, by mask convention, with the mean-mask row beside it."""
    time_spent = time_spent or ModelTime()
    scores: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    segmentation: dict[str, SegmentationStatistics] = {}
    baseline: dict[str, SegmentationStatistics] = {}
    for part, prediction in predictions(network, store, rows, time_spent):
        if prediction.pneumonia is not None:
            known = np.isin(store.label[part], range(len(CLASSES)))
            scores.append(prediction.pneumonia[known])
            labels.append(store.label[part][known])
        if prediction.mask is None:
            continue
        has_mask = store.mask_row[part] >= 0
        for convention in sorted(set(store.convention[part][has_mask])):
            chosen = has_mask & (store.convention[part] == convention)
            truth = store.load_masks(part[chosen])[:, 0].numpy() >= MASK_THRESHOLD
            scored = segmentation_statistics(prediction.mask[chosen] >= MASK_THRESHOLD, truth)
            _accumulate(segmentation, str(convention), scored)
            if mean_mask is not None:
                _accumulate(baseline, str(convention), _score_mean_mask(mean_mask, truth))
    known_labels: np.ndarray = np.concatenate(labels) if labels else np.empty(0)
    return EvaluationStatistics(
        patients=len(np.unique(store.patient[rows])),
        images=len(rows),
        classification=classification_statistics(np.concatenate(scores), known_labels) if len(known_labels) else None,
        segmentation=segmentation,
        mean_mask=baseline,
    )


def _accumulate(tables: dict[str, SegmentationStatistics], name: str, more: SegmentationStatistics) -> None:
    """Add a batch's statistics, so that no mask is kept."""
    tables[name] = add_segmentation(tables[name], more) if name in tables else more


def _score_mean_mask(mean_mask: np.ndarray, truths: np.ndarray) -> SegmentationStatistics:
    """Score the baseline that always predicts the same mask."""
    guess = enlarge_mean_mask(mean_mask, truths.shape[-1]) >= MASK_THRESHOLD
    return segmentation_statistics(np.broadcast_to(guess, truths.shape), truths)


def reduce_mean_mask(store: Store, rows: np.ndarray) -> np.ndarray:
    """Average the masks of rows and shrink to [32, 32], values in [0, 1]."""
    total = torch.zeros(1, 1, store.image_size, store.image_size, dtype=torch.float64)
    for start in range(0, len(rows), _BATCH):
        total += store.load_masks(rows[start : start + _BATCH]).double().sum(dim=0, keepdim=True)
    small = torch.nn.functional.adaptive_avg_pool2d(total / max(1, len(rows)), MEAN_MASK_SIDE)
    return small[0, 0].numpy()


def enlarge_mean_mask(mean_mask: np.ndarray, image_size: int) -> np.ndarray:
    """Resize a [32, 32] mean mask to [S, S]."""
    grid = torch.from_numpy(np.asarray(mean_mask, dtype=np.float64))[None, None]
    large = torch.nn.functional.interpolate(grid, size=(image_size, image_size), mode="bilinear", align_corners=False)
    return large[0, 0].numpy()
