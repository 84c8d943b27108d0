"""From pools to one step's batch: which images, seen how. A pure function of (seed, site, step)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multimix.augment import Recipe, apply, apply_to_masks, strong_recipe, weak_recipe
from multimix.config import MethodConfig
from multimix.data.sampling import Pools, draw
from multimix.data.store import Store
from multimix.objective import Batch, Slots
from multimix.randomness import Key, derive_seed


@dataclass(frozen=True)
class TrainingData:
    """A site's images and what each may teach."""

    site: str
    store: Store
    pools: Pools
    log_prior: tuple[float, float] = (0.0, 0.0)  # logit adjustment for a site of one class (arXiv 2007.07314)


@dataclass(frozen=True)
class Drawn:
    """Rows of the store that one step uses, by what they teach."""

    labelled: np.ndarray
    masked: np.ndarray
    unlabelled: np.ndarray
    teaches_classifier: np.ndarray  # bool, of `unlabelled`
    teaches_decoder: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All rows, in the order in which a batch counts its images: labelled, unlabelled, masked."""
        return np.concatenate([self.labelled, self.unlabelled, self.masked])


def slots(method: MethodConfig, images_per_group: int) -> Slots:
    """Return the planned group sizes, the constant divisors of the loss.

    A step of 5 x n is n labelled, n masked, n weak and n strong views for the class, and n views (n / 2 pairs)
    for the mask. With shared unlabelled images, one set of n pairs serves both tasks.
    """
    n = images_per_group
    pairs = n if method.objective.share_unlabelled else max(1, n // 2)
    return Slots(labelled=n, masked=n, unlabelled_classification=n, unlabelled_segmentation=pairs)


def draw_rows(data: TrainingData, method: MethodConfig, *, seed: int, step: int, images_per_group: int) -> Drawn:
    """Choose the rows of one step; every pool is reshuffled each epoch."""
    planned = slots(method, images_per_group)
    pools, network, semi = data.pools, method.network, method.objective.semi_supervised

    def take(pool: np.ndarray, purpose: str, count: int) -> np.ndarray:
        key = (seed, data.site, purpose)
        return draw(pool, key=key, start=step * count, count=count if len(pool) else 0)

    nothing = np.empty(0, dtype=np.int64)
    labelled = take(pools.labelled_classification, "labelled", planned.labelled) if network.classification else nothing
    masked = take(pools.labelled_segmentation, "masked", planned.masked) if network.segmentation else nothing
    for_class = pools.unlabelled_classification if semi and network.classification else nothing
    for_mask = pools.unlabelled_segmentation if semi and network.segmentation else nothing
    if method.objective.share_unlabelled:
        unlabelled = take(np.union1d(for_class, for_mask), "unlabelled", planned.unlabelled_classification)
        return Drawn(labelled, masked, unlabelled, np.isin(unlabelled, for_class), np.isin(unlabelled, for_mask))
    class_rows = take(for_class, "unlabelled class", planned.unlabelled_classification)
    mask_rows = take(for_mask, "unlabelled mask", planned.unlabelled_segmentation)
    return _apart(labelled, masked, class_rows, mask_rows)


def roles_of(rows: np.ndarray, pools: Pools, method: MethodConfig) -> Drawn:
    """Let each of the rows teach all that its pools say, once: what a Poisson sample of patients trains on."""
    network, semi = method.network, method.objective.semi_supervised

    def of(pool: np.ndarray, *, used: bool) -> np.ndarray:
        return rows[np.isin(rows, pool)] if used else rows[:0]

    labelled = of(pools.labelled_classification, used=network.classification)
    masked = of(pools.labelled_segmentation, used=network.segmentation)
    for_class = of(pools.unlabelled_classification, used=semi and network.classification)
    for_mask = of(pools.unlabelled_segmentation, used=semi and network.segmentation)
    if method.objective.share_unlabelled:
        unlabelled = np.union1d(for_class, for_mask)
        return Drawn(labelled, masked, unlabelled, np.isin(unlabelled, for_class), np.isin(unlabelled, for_mask))
    return _apart(labelled, masked, for_class, for_mask)


def _apart(labelled: np.ndarray, masked: np.ndarray, for_class: np.ndarray, for_mask: np.ndarray) -> Drawn:
    """Let each unlabelled image teach one task."""
    teaches_decoder = np.arange(len(for_class) + len(for_mask)) >= len(for_class)
    return Drawn(labelled, masked, np.concatenate([for_class, for_mask]), ~teaches_decoder, teaches_decoder)


def make_batch(
    data: TrainingData, drawn: Drawn, method: MethodConfig, *, seed: Key, step: int, device: torch.device
) -> Batch:
    """Load and augment the rows of one step. Every draw is keyed by site, step, patient, image and purpose."""

    def seeds(rows: np.ndarray, purpose: str) -> list[int]:
        patients = data.store.patient[rows]
        # The position tells repeated draws of one image in a step apart.
        return [
            derive_seed(seed, data.site, step, int(patient), int(row), purpose, int(np.sum(rows[:i] == row)))
            for i, (row, patient) in enumerate(zip(rows, patients, strict=True))
        ]

    def images(rows: np.ndarray) -> Tensor:
        return data.store.load_images(rows).to(device)

    views, strong_labelled = method.views, method.views.strong_labelled
    labelled_seeds, masked_seeds = seeds(drawn.labelled, "labelled"), seeds(drawn.masked, "masked")
    unlabelled_seeds = seeds(drawn.unlabelled, "unlabelled")

    def supervised(view_seeds: list[int]) -> list[Recipe]:
        if strong_labelled:
            return [strong_recipe(views, s, geometric=True) for s in view_seeds]
        return [weak_recipe(views, s) for s in view_seeds]

    masked_recipes = supervised(masked_seeds)
    masks = data.store.load_masks(drawn.masked).to(device) if len(drawn.masked) else images(drawn.masked)
    plain = images(drawn.unlabelled)
    weak = [weak_recipe(views, s) for s in unlabelled_seeds]
    strong = [
        strong_recipe(views, s, geometric=not mask)
        for s, mask in zip(unlabelled_seeds, drawn.teaches_decoder, strict=True)
    ]
    return Batch(
        labelled=_seen(images(drawn.labelled), supervised(labelled_seeds)),
        labels=torch.from_numpy(data.store.label[drawn.labelled].astype(np.int64)).to(device),
        masked=_seen(images(drawn.masked), masked_recipes),
        masks=apply_to_masks(masks, masked_recipes) if masked_recipes else masks,
        weak=_seen(plain, weak),
        strong=_seen(plain, strong),
        log_prior=torch.tensor(data.log_prior, dtype=torch.float32, device=device),
        teaches_classifier=torch.from_numpy(drawn.teaches_classifier).to(device),
        teaches_decoder=torch.from_numpy(drawn.teaches_decoder).to(device),
        dropout_seeds=tuple(labelled_seeds + unlabelled_seeds + masked_seeds),
    )


def _seen(images: Tensor, recipes: list[Recipe]) -> Tensor:
    return apply(images, recipes) if recipes else images
