"""Weak and strong views of radiographs: one affine warp, then photometric operations.

Weak: small shift, rotation, scale, and mirroring. Strong: RandAugment (Cubuk et al. 2020, arXiv 1909.13719), n
operations of magnitude m (of 30) on top of the weak view. Every draw is keyed by the image's seed, so a view does
not depend on the batch it is in. A mask follows its image through the same warp.

Images are float32 [n, 1, S, S] in [0, 1]; outside the image is black.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from multimix.config import GeometricOperation, PhotometricOperation, ViewConfig
from multimix.intensity import GREYS, equalised
from multimix.randomness import derive_seed, stream

_FULL_MAGNITUDE = 30.0


@dataclass(frozen=True)
class Recipe:
    """What is done to one image: an affine map [2, 3] and photometric operations with their levels."""

    affine: np.ndarray
    photometric: tuple[tuple[PhotometricOperation, float], ...]
    seed: int


def weak_recipe(views: ViewConfig, seed: int) -> Recipe:
    """Draw the weak view of the image with this seed."""
    rng = stream("weak view", seed)
    mirrored = views.flip and rng.random() < 0.5  # noqa: PLR2004  (a fair coin)
    angle, shift_x, shift_y, size = rng.uniform(-1, 1, 4)
    affine = _affine(
        degrees=angle * views.weak_rotate_degrees,
        scale=1.0 + size * views.weak_scale,
        translate=(2 * shift_x * views.weak_translate, 2 * shift_y * views.weak_translate),
        mirrored=mirrored,
    )
    return Recipe(affine, (), seed)


def strong_recipe(views: ViewConfig, seed: int, *, geometric: bool) -> Recipe:
    """Draw the strong view that belongs to the weak view of the same seed.

    Without `geometric` operations it lies exactly over the weak view, pixel for pixel, as segmentation needs.
    """
    base = weak_recipe(views, seed)
    rng = stream("strong view", seed)
    greys = len(views.photometric)
    choices = greys + (len(views.geometric) if geometric else 0)
    affine = base.affine
    photometric: list[tuple[PhotometricOperation, float]] = []
    for _ in range(views.strong_operations if choices else 0):
        choice = int(rng.integers(choices))
        level = float(views.strong_magnitude / _FULL_MAGNITUDE * rng.choice((-1.0, 1.0)))
        if choice < greys:
            photometric.append((views.photometric[choice], level))
        else:
            affine = _compose(_geometric(views.geometric[choice - greys], level), affine)
    return Recipe(affine, tuple(photometric), seed)


def apply(images: Tensor, recipes: Sequence[Recipe]) -> Tensor:
    """Return the views [n, 1, S, S] of images, one recipe each, values in [0, 1]."""
    views = _warp(images, recipes)
    for turn in range(max((len(recipe.photometric) for recipe in recipes), default=0)):
        by_operation: dict[PhotometricOperation, list[int]] = {}
        for position, recipe in enumerate(recipes):
            if turn < len(recipe.photometric):
                by_operation.setdefault(recipe.photometric[turn][0], []).append(position)
        for operation, positions in by_operation.items():
            levels = torch.tensor(
                [recipes[p].photometric[turn][1] for p in positions], dtype=views.dtype, device=views.device
            )[:, None, None, None]
            seeds = [derive_seed("photometric", recipes[p].seed, turn) for p in positions]
            views[positions] = _PHOTOMETRIC[operation](views[positions], levels, seeds).clamp_(0.0, 1.0)
    return views


def apply_to_masks(masks: Tensor, recipes: Sequence[Recipe]) -> Tensor:
    """Warp masks [n, 1, S, S] as their images; binary again afterwards."""
    return (_warp(masks, recipes) >= 0.5).to(masks.dtype)  # noqa: PLR2004  (half of a pixel)


def _warp(images: Tensor, recipes: Sequence[Recipe]) -> Tensor:
    theta = torch.from_numpy(np.stack([recipe.affine for recipe in recipes])).to(images.device, images.dtype)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _affine(
    *,
    degrees: float = 0.0,
    scale: float = 1.0,
    translate: tuple[float, float] = (0.0, 0.0),
    mirrored: bool = False,
) -> np.ndarray:
    """Return the map [2, 3] from output to input coordinates, both in [-1, 1]."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    if mirrored:
        rotation[:, 0] *= -1.0
    return np.concatenate([rotation, np.array(translate)[:, None]], axis=1)


def _compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the map that looks up through `second`, then `first`."""
    bottom = np.array([[0.0, 0.0, 1.0]])
    composed: np.ndarray = (np.concatenate([first, bottom]) @ np.concatenate([second, bottom]))[:2]
    return composed


def _geometric(operation: GeometricOperation, level: float) -> np.ndarray:
    """Return RandAugment's geometric operation at a level in [-1, 1]."""
    affine = _affine()
    if operation == "rotate":
        return _affine(degrees=30.0 * level)
    if operation == "scale":
        return _affine(scale=1.0 + 0.3 * level)
    if operation in ("shear_x", "shear_y"):
        affine[(0, 1) if operation == "shear_x" else (1, 0)] = 0.3 * level
    else:
        affine[0 if operation == "translate_x" else 1, 2] = 0.9 * level
    return affine


def _autocontrast(x: Tensor, _level: Tensor, _seeds: list[int]) -> Tensor:
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=1.0 / GREYS)


def _equalize(x: Tensor, _level: Tensor, _seeds: list[int]) -> Tensor:
    return equalised(x)


def _brightness(x: Tensor, level: Tensor, _seeds: list[int]) -> Tensor:
    return x * (1.0 + 0.9 * level)


def _contrast(x: Tensor, level: Tensor, _seeds: list[int]) -> Tensor:
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1.0 + 0.9 * level)


def _gamma(x: Tensor, level: Tensor, _seeds: list[int]) -> Tensor:
    return x.clamp(min=1.0 / GREYS) ** torch.exp(1.2 * level)


def _blurred(x: Tensor) -> Tensor:
    return functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _blur(x: Tensor, level: Tensor, _seeds: list[int]) -> Tensor:
    return x + level.abs().clamp(max=1.0) * 2.0 * (_blurred(x) - x)


def _sharpness(x: Tensor, level: Tensor, _seeds: list[int]) -> Tensor:
    soft = _blurred(x)
    return soft + (x - soft) * (1.0 + 0.9 * level)


def _posterize(x: Tensor, level: Tensor, _seeds: list[int]) -> Tensor:
    steps = 2.0 ** (8.0 - (4.0 * level.abs()).round()) - 1.0
    return (x * steps).round() / steps


def _solarize(x: Tensor, level: Tensor, _seeds: list[int]) -> Tensor:
    return torch.where(x >= 1.0 - level.abs(), 1.0 - x, x)


def _noise(x: Tensor, level: Tensor, seeds: list[int]) -> Tensor:
    generator = torch.Generator()
    noise = torch.stack([torch.randn(x.shape[1:], generator=generator.manual_seed(seed)) for seed in seeds])
    return x + 0.15 * level.abs() * noise.to(x.device, x.dtype)


def _cutout(x: Tensor, level: Tensor, seeds: list[int]) -> Tensor:
    """Cover one square of up to half the image's side with the image's mean."""
    size = x.shape[-1]
    covered = x.clone()
    for position, seed in enumerate(seeds):
        side = max(1, round(0.5 * size * abs(float(level[position]))))
        top, left = stream("cutout", seed).integers(0, size - side + 1, 2)
        covered[position, :, top : top + side, left : left + side] = x[position].mean()
    return covered


_PHOTOMETRIC: dict[PhotometricOperation, Callable[[Tensor, Tensor, list[int]], Tensor]] = {
    "identity": lambda x, _level, _seeds: x,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "brightness": _brightness,
    "contrast": _contrast,
    "gamma": _gamma,
    "blur": _blur,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "noise": _noise,
    "cutout": _cutout,
}
