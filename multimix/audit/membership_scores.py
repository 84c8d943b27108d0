"""From a model to what membership inference looks at: each patient's loss, and statistics that are nearly normal.

The losses are those the model was trained with (`multimix.objective`), of the images as they are: no augmentation,
no dropout. **They are exact values about real patients, not differentially private, and stay with the auditor.**

Images without label and mask are out of scope (their training loss needs the teacher of each step): patients who have
none else are left out and counted.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from multimix.audit.membership import Floats
from multimix.config import ObjectiveConfig
from multimix.data.store import Store
from multimix.errors import InputError
from multimix.network import CLASSES, MultiMixNetwork
from multimix.objective import dice_loss
from multimix.saliency import view

_BATCH: Final = 16
_LEAST_LOSS: Final = 1e-12  # of a mask, before the logarithm

Int64 = npt.NDArray[np.int64]
# What is known of an image, in the order of `_image_values`.
_CLASSIFICATION, _CONFIDENCE, _SEGMENTATION, _MASK_FIT = range(4)


@dataclass(frozen=True, eq=False)
class PatientLosses:
    """Means over each patient's images [patients]; NaN where no image has a class label, or a mask."""

    patient: npt.NDArray[np.int32]  # ascending, as in the store
    classification: Floats  # cross-entropy
    confidence: Floats  # logit of the true class's probability
    segmentation: Floats  # Dice plus pixelwise cross-entropy, weighed as in training
    mask_fit: Floats  # minus the logarithm of an image's segmentation loss
    left_out: int  # patients with neither label nor mask that the model was taught

    @property
    def statistics(self) -> Floats:
        """What the likelihood-ratio attack looks at, [2, patients]: confidence and mask fit, both nearly normal."""
        return np.stack([self.confidence, self.mask_fit])

    def total(self, objective: ObjectiveConfig) -> Floats:
        """Return both tasks' losses added with the training's weights; a task without images counts 0."""
        return np.nan_to_num(self.classification) + objective.segmentation_weight * np.nan_to_num(self.segmentation)


def loss_threshold_scores(losses: PatientLosses, objective: ObjectiveConfig) -> Floats:
    """Return minus the loss [patients] (Yeom et al. 2018, arXiv 1709.01604)."""
    return -losses.total(objective)


def patient_losses(
    network: MultiMixNetwork,
    store: Store,
    rows: Int64,
    objective: ObjectiveConfig,
    *,
    conventions: frozenset[str] | None = None,
) -> PatientLosses:
    """Return each patient's losses over the rows of a store; deterministic.

    Only masks of the given conventions count, those that the training accepted; None is all. Classes other than
    normal and pneumonia do not count.

    Raises:
        InputError: `scores_not_finite` if the model gives a loss that is infinite or no number.
        StoreError: as the store.
    """
    columns = [_image_values(network, store, rows[i : i + _BATCH], objective, conventions) for i in _starts(rows)]
    values = np.concatenate([np.empty((4, 0)), *columns], axis=1)
    known = ~np.isnan(values)
    patient, position = np.unique(store.patient[rows], return_inverse=True)
    means = np.stack([_means(values[i], known[i], position, len(patient)) for i in range(4)])
    kept = ~np.isnan(means).all(axis=0)
    means = means[:, kept]
    return PatientLosses(
        patient=patient[kept],
        classification=means[_CLASSIFICATION],
        confidence=means[_CONFIDENCE],
        segmentation=means[_SEGMENTATION],
        mask_fit=means[_MASK_FIT],
        left_out=int((~kept).sum()),
    )


def _starts(rows: Int64) -> range:
    return range(0, len(rows), _BATCH)


def _means(values: Floats, known: npt.NDArray[np.bool_], position: Int64, patients: int) -> Floats:
    """Return the mean of each patient's known values, NaN where there is none."""
    count = np.bincount(position[known], minlength=patients)
    total = np.bincount(position[known], weights=values[known], minlength=patients)
    means: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def _image_values(
    network: MultiMixNetwork, store: Store, rows: Int64, objective: ObjectiveConfig, conventions: frozenset[str] | None
) -> Floats:
    """Return the four values of each image [4, rows], NaN where it has no label or no mask."""
    values = np.full((4, len(rows)), np.nan)
    labelled, masked = _labelled(store, rows), _masked(store, rows, conventions)
    labelled &= network.config.classification
    masked &= network.config.segmentation
    used = np.flatnonzero(labelled | masked)
    if not used.size:
        return values
    labelled, masked, rows = labelled[used], masked[used], rows[used]
    viewed = view(network, store.load_images(rows).to(next(network.parameters()).device))
    if labelled.any() and viewed.class_logits is not None:
        logits = viewed.class_logits[torch.from_numpy(labelled)]
        values[:2, used[labelled]] = _class_values(logits, store.label[rows[labelled]])
    if masked.any():
        chosen = torch.from_numpy(masked)
        with torch.no_grad():
            bridge = None if viewed.bridge is None else viewed.bridge[chosen]
            logits = network.decode([level[chosen] for level in viewed.levels], bridge)
        values[2:, used[masked]] = _mask_values(logits, store.load_masks(rows[masked]), objective)
    return values


def _labelled(store: Store, rows: Int64) -> npt.NDArray[np.bool_]:
    return np.isin(store.label[rows], range(len(CLASSES)))


def _masked(store: Store, rows: Int64, conventions: frozenset[str] | None) -> npt.NDArray[np.bool_]:
    accepted: npt.NDArray[np.bool_] = store.mask_row[rows] >= 0
    if conventions is not None:
        accepted &= np.isin(store.convention[rows], sorted(conventions))
    return accepted


def _class_values(logits: Tensor, labels: npt.NDArray[np.int8]) -> Floats:
    """Return cross-entropy and logit of the true class's probability [2, n] of logits [n, 2].

    The latter is the difference of the logits: it keeps its digits where the probability has rounded to 1.
    """
    pair = logits.double().cpu()
    label = torch.from_numpy(labels.astype(np.int64))[:, None]
    confidence = (pair.gather(1, label) - pair.gather(1, 1 - label))[:, 0]
    return _finite(torch.stack([functional.softplus(-confidence), confidence]))


def _mask_values(logits: Tensor, masks: Tensor, objective: ObjectiveConfig) -> Floats:
    """Return the loss of `multimix.objective` and minus its logarithm [2, n] of mask logits [n, 1, S, S]."""
    logits, masks = logits.double().cpu(), masks.double()
    loss = dice_loss(logits, masks)
    if objective.cross_entropy_weight:
        pixels = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        loss = loss + objective.cross_entropy_weight * pixels.mean(dim=(1, 2, 3))
    return _finite(torch.stack([loss, -loss.clamp_min(_LEAST_LOSS).log()]))


def _finite(values: Tensor) -> Floats:
    """Refuse a model that diverged: here NaN means that there is no label or no mask."""
    if not values.isfinite().all():
        raise InputError("scores_not_finite", "The model gives a loss that is infinite or no number: it has diverged.")
    return values.numpy()
