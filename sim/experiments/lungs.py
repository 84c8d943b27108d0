"""Images cut to the lungs that a model draws: without collar, markers and the edge that betrays the exposure field."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from multimix.data.store import IMAGES, Store, open_store
from multimix.evaluation import MASK_THRESHOLD, ModelTime, predictions
from multimix.network import MultiMixNetwork

_MARGIN: Final = 0.05  # of the box, on each side
_SMALLEST_PART: Final = 0.1  # of the largest connected part: what is smaller is no lung
_LEAST_AREA: Final = 0.05  # of the image: below it the drawing is not trusted, and the whole image stays

Box = tuple[int, int, int, int]  # top, bottom, left, right; pixels, the ends excluded


@contextmanager
def cut_to_lungs(store: Store, network: MultiMixNetwork, scratch: Path) -> Iterator[Store]:
    """Give a copy of the store with every image cut to its lungs and enlarged again, for as long as it is needed.

    Masks are not cut: the copy is for classification only.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        copy = Path(folder) / "store"
        shutil.copytree(store.path, copy)
        records = np.memmap(copy / IMAGES, np.uint8, "r+", shape=(len(store), store.image_size, store.image_size))
        for rows, prediction in predictions(network, store, np.arange(len(store)), ModelTime(), every_mask=True):
            if prediction.mask is None:
                raise ValueError("a network without decoder draws no lungs")
            boxes = [lung_box(mask >= MASK_THRESHOLD) for mask in prediction.mask]
            records[store.image_row[rows]] = _cut(store.load_images(rows), boxes)
        records.flush()
        yield open_store(copy)


def lung_box(mask: npt.NDArray[np.bool_]) -> Box | None:
    """Return the box around the lungs of a mask [H, W]; None where it draws none that can be trusted."""
    parts, count = ndimage.label(mask)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    lungs = np.isin(parts, 1 + np.flatnonzero(sizes >= _SMALLEST_PART * sizes.max()))
    if lungs.mean() < _LEAST_AREA:
        return None
    rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _cut(images: torch.Tensor, boxes: list[Box | None]) -> npt.NDArray[np.uint8]:
    """Return images [n, 1, S, S] in [0, 1] cut to their boxes, as uint8 [n, S, S]."""
    size = images.shape[-1]
    theta = torch.stack([_affine(box or (0, size, 0, size), size, 0.0 if box is None else _MARGIN) for box in boxes])
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    cut = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    pixels: npt.NDArray[np.uint8] = (cut[:, 0] * 255.0).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def _affine(box: Box, size: int, margin: float) -> torch.Tensor:
    top, bottom, left, right = box
    width, height = (1 + 2 * margin) * (right - left) / size, (1 + 2 * margin) * (bottom - top) / size
    return torch.tensor([[width, 0.0, (left + right) / size - 1.0], [0.0, height, (top + bottom) / size - 1.0]])
