r"""The MultiMix loss, per image, on one page (Haque et al. 2021, equations 1 to 5; arXiv 2110.13185).

    L = CE(labelled) + lambda CE(strong view, pseudo-label of the weak view) where it is confident
      + alpha [Dice(masked) + gamma BCE(masked)] + beta KL(weak view's mask || strong view's mask)

Each term is a mean over the slots of its group: constants of the plan, never the number of images that
qualified. Every image's loss depends on that image alone. The released code's segmentation KL was a softmax over
one channel (identically 0) between unrelated images; here it is the Bernoulli divergence per pixel between two
views of one image. Pseudo-labels, mask targets and saliency are detached and made before (`targets`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from multimix.config import ObjectiveConfig
from multimix.network import Dropout, MultiMixNetwork
from multimix.saliency import view

_SMOOTH = 1.0  # of the Dice loss, in pixels


@dataclass(frozen=True)
class Batch:
    """One step's images. `weak` and `strong` are two views of each unlabelled image; any part may be empty."""

    labelled: Tensor  # [a, 1, S, S]
    labels: Tensor  # [a] int64
    masked: Tensor  # [b, 1, S, S]
    masks: Tensor  # [b, 1, S, S] in {0, 1}
    weak: Tensor  # [u, 1, S, S]
    strong: Tensor  # [u, 1, S, S]
    teaches_classifier: Tensor  # [u] bool: consistency of the class
    teaches_decoder: Tensor  # [u] bool: consistency of the mask
    log_prior: Tensor  # [2] added to the logits of labelled images (logit adjustment); zeros otherwise
    # One seed an image for dropout, in the order labelled, strong, masked.
    dropout_seeds: tuple[int, ...]


@dataclass(frozen=True)
class Targets:
    """Detached data that the loss compares with."""

    pseudo_labels: Tensor  # [u] int64
    confident: Tensor  # [u] float, 1 where the weak view's confidence reaches the threshold and it teaches
    mask_probability: Tensor  # [v, 1, S, S] for the v images that teach the decoder
    strong_bridge: Tensor | None  # [v, 2, S/8, S/8]
    masked_bridge: Tensor | None  # [b, 2, S/8, S/8]


@dataclass(frozen=True)
class Slots:
    """How many images each group is planned to hold: the constant divisors of the loss."""

    labelled: int
    masked: int
    unlabelled_classification: int
    unlabelled_segmentation: int


def targets(student: MultiMixNetwork, teacher: MultiMixNetwork, batch: Batch, objective: ObjectiveConfig) -> Targets:
    """Make pseudo-labels, mask targets and bridges, deterministically and without gradients.

    Weak views go through the teacher, saliency of what the student will decode through the student. An image
    is encoded only as far as one of its outputs is used.
    """
    config = student.config
    use_mask = batch.teaches_decoder & config.segmentation & objective.semi_supervised
    use_class = batch.teaches_classifier & config.classification & objective.semi_supervised
    unlabelled = batch.weak.shape[0]
    pseudo_labels = torch.zeros(unlabelled, dtype=torch.long, device=batch.weak.device)
    confident = torch.zeros(unlabelled, dtype=batch.weak.dtype, device=batch.weak.device)
    mask_probability = batch.weak[use_mask]
    strong_bridge = masked_bridge = None
    if use_mask.any():
        viewed = view(teacher, batch.weak[use_mask])
        with torch.no_grad():
            mask_probability = teacher.decode(viewed.levels, viewed.bridge).sigmoid()
        if viewed.class_logits is not None:
            pseudo_labels[use_mask], confident[use_mask] = _pseudo(viewed.class_logits, objective)
    rest = use_class & ~use_mask
    if rest.any():
        with torch.no_grad():
            logits = teacher.classify(teacher.encode(batch.weak[rest]))
        pseudo_labels[rest], confident[rest] = _pseudo(logits, objective)
    if config.segmentation and config.bridge != "off":
        strong_bridge, masked_bridge = _bridges(student, batch.strong[use_mask], batch.masked)
    return Targets(pseudo_labels, confident * use_class, mask_probability, strong_bridge, masked_bridge)


def _pseudo(logits: Tensor, objective: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """Return the predicted class and 1.0 where its probability reaches the threshold."""
    confidence, label = logits.softmax(dim=1).max(dim=1)
    return label, (confidence >= objective.confidence_threshold).to(logits.dtype)


def _bridges(student: MultiMixNetwork, strong: Tensor, masked: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Compute the bridges of strong and of masked images in one pass."""
    if strong.shape[0] + masked.shape[0] == 0:
        return None, None
    bridge = view(student, torch.cat([strong, masked])).bridge
    return (bridge[: strong.shape[0]], bridge[strong.shape[0] :]) if bridge is not None else (None, None)


@dataclass(frozen=True)
class Losses:
    """The terms per image, unweighted; empty where the group is empty."""

    classification: Tensor  # [a]
    unlabelled_classification: Tensor  # [c] of the c images that teach the classifier, 0 where not confident
    segmentation: Tensor  # [b]
    unlabelled_segmentation: Tensor  # [v] of the v images that teach the decoder

    def total(self, slots: Slots, objective: ObjectiveConfig, unlabelled_ramp: float = 1.0) -> Tensor:
        """Weigh and add the terms; `unlabelled_ramp` in [0, 1] scales those without labels."""
        unlabelled_classification = objective.unlabelled_classification_weight * unlabelled_ramp
        unlabelled_segmentation = objective.unlabelled_segmentation_weight * unlabelled_ramp
        return (
            self.classification.sum() / max(1, slots.labelled)
            + unlabelled_classification * self.unlabelled_classification.sum() / max(1, slots.unlabelled_classification)
            + objective.segmentation_weight * self.segmentation.sum() / max(1, slots.masked)
            + unlabelled_segmentation * self.unlabelled_segmentation.sum() / max(1, slots.unlabelled_segmentation)
        )


def losses(
    network: MultiMixNetwork,
    batch: Batch,
    target: Targets,
    objective: ObjectiveConfig,
    dropout: Dropout | None,
) -> Losses:
    """Return every image's loss terms, with gradients to the network's parameters.

    The decoder runs only for images whose mask is used: masked ones and strong views that teach the decoder.
    """
    config = network.config
    empty = batch.labelled.new_zeros(0)
    a, b = batch.labelled.shape[0] * config.classification, batch.masked.shape[0] * config.segmentation
    use_mask = batch.teaches_decoder & config.segmentation & objective.semi_supervised
    use_class = batch.teaches_classifier & config.classification & objective.semi_supervised
    used = use_mask | use_class
    strong = batch.strong[used]
    u = strong.shape[0]
    if a + u + b == 0:
        return Losses(empty, empty, empty, empty)
    images = torch.cat([batch.labelled[:a], strong, batch.masked[:b]])
    if dropout is not None:
        dropout = _chosen(dropout, batch, used, a, b)
    levels = network.encode(images, dropout)
    classification = unlabelled_classification = segmentation = unlabelled_segmentation = empty
    classified = torch.cat([torch.arange(a, device=images.device), a + torch.nonzero(use_class[used])[:, 0]])
    if classified.numel():  # else no gradient; one of zeros would let weight decay move what nobody taught
        logits = network.classify([levels[-1][classified]])
        classification = functional.cross_entropy(logits[:a] + batch.log_prior, batch.labels[:a], reduction="none")
        unlabelled_classification = target.confident[use_class] * functional.cross_entropy(
            logits[a:], target.pseudo_labels[use_class], reduction="none"
        )
    decoded = torch.cat([a + torch.nonzero(use_mask[used])[:, 0], torch.arange(a + u, a + u + b, device=images.device)])
    if config.segmentation and decoded.numel():
        v = decoded.numel() - b
        parts = [x for x in (target.strong_bridge, target.masked_bridge) if x is not None]
        mask_dropout = dropout.at(decoded.tolist()) if dropout is not None else None
        logits = network.decode([level[decoded] for level in levels], torch.cat(parts) if parts else None, mask_dropout)
        unlabelled_segmentation = bernoulli_divergence(target.mask_probability, logits[:v])
        segmentation = dice_loss(logits[v:], batch.masks[:b])
        if objective.cross_entropy_weight:
            pixels = functional.binary_cross_entropy_with_logits(logits[v:], batch.masks[:b], reduction="none")
            segmentation = segmentation + objective.cross_entropy_weight * pixels.mean(dim=(1, 2, 3))
    return Losses(classification, unlabelled_classification, segmentation, unlabelled_segmentation)


def _chosen(dropout: Dropout, batch: Batch, used: Tensor, a: int, b: int) -> Dropout:
    """Return the masks of the images that are encoded: labelled, strong in use, masked."""
    first_strong, first_masked = batch.labelled.shape[0], batch.labelled.shape[0] + batch.strong.shape[0]
    strong = (first_strong + torch.nonzero(used)[:, 0]).tolist()
    return dropout.at([*range(a), *strong, *range(first_masked, first_masked + b)])


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - soft Dice of each image [n]."""
    probability = logits.sigmoid()
    overlap = (probability * masks).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3))
    return 1.0 - (2.0 * overlap + _SMOOTH) / (total + _SMOOTH)


def bernoulli_divergence(probability: Tensor, logits: Tensor) -> Tensor:
    """KL(Bernoulli(probability) || Bernoulli(sigmoid(logits))), averaged over each image's pixels [n]."""
    cross = functional.binary_cross_entropy_with_logits(logits, probability, reduction="none")
    entropy = -(torch.xlogy(probability, probability) + torch.xlogy(1 - probability, 1 - probability))
    return (cross - entropy).mean(dim=(1, 2, 3))
