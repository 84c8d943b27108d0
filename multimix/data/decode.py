"""From an image file to grey pixels in a square: reading, checking, fitting.

The geometry is kept, so that a mask follows its image and a prediction can be mapped back.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimix.data.manifest import Record, UInt8, cell_error
from multimix.errors import ManifestError

MAX_PIXELS: Final = 64_000_000
FORMATS: Final = ("JPEG", "PNG", "TIFF", "BMP")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a square: `pad` keeps the aspect and adds zeros, `stretch` fills the square."""

    image_size: int = 128
    fit: Literal["pad", "stretch"] = "pad"

    @property
    def version(self) -> str:
        """Changes whenever the same file would give other pixels."""
        return f"grey8-bilinear-{self.fit}-{self.image_size}-v1"


class Geometry(NamedTuple):
    """Where an image of width x height lies in the square: column = x * scale_x + offset_x; rows alike."""

    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: int
    offset_y: int


def read_image(record: Record, *, root: Path) -> UInt8:
    """Decode an image to grey [height, width].

    Deeper than 8 bits, it is scaled by the smallest bit depth that holds its maximum: twelve-bit radiographs
    often come in 16-bit files, and divided by 65,535 they would keep 16 grey levels.

    Raises:
        ManifestError: `image_unreadable` or `image_too_large`.
    """
    fail = partial(cell_error, where=root, row=record.row, column="image", value=record.image)
    image = _load(root / record.image, fail)
    if not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("L"))
    deep = np.asarray(image).astype(np.int64)
    if image.mode == "F" or deep.min() < 0 or deep.max() >= 1 << 16:
        problem = f"has pixels of format {image.mode} that are not 16-bit grey"
        raise fail("image_unreadable", problem=problem, remedy="Save it as 8- or 16-bit grey PNG.")
    top = (1 << max(8, int(deep.max()).bit_length())) - 1
    return ((deep * 255 + top // 2) // top).astype(np.uint8)


def read_mask(
    record: Record, *, root: Path, width: int | None = None, height: int | None = None
) -> npt.NDArray[np.bool_]:
    """Decode the mask of an image of this size, if it is known: True is lung.

    Raises:
        ManifestError: as for an image, and `mask_size_differs`, `mask_not_binary`, `mask_empty`.
    """
    fail = partial(cell_error, where=root, row=record.row, column="mask", value=record.mask)
    mask = _load(root / record.mask, fail)
    if width is not None and mask.size != (width, height):
        problem = f"is {mask.width} x {mask.height} pixels but its image is {width} x {height}"
        raise fail("mask_size_differs", problem=problem, remedy="Export the mask at the size of its image.")
    values = {value for value, count in enumerate(mask.histogram()) if count}
    if mask.mode not in {"1", "L"} or not (values <= {0, 1} or values <= {0, 255}):
        remedy = "Save it as 1-bit PNG, or as 8-bit grey with only the values 0 and 1, or 0 and 255."
        raise fail("mask_not_binary", problem="has more than lung and background", remedy=remedy)
    if values == {0}:
        raise fail("mask_empty", problem="marks no lung", remedy="Mark the lung, or leave the cell empty.")
    return np.asarray(mask) > 0


def _load(file: Path, fail: Callable[..., ManifestError]) -> Image.Image:
    """Decode a file; its size is checked before a pixel is, so a small file cannot fill the memory."""
    remedy = f"Save it as {', '.join(FORMATS)} of at most {MAX_PIXELS // 10**6} million pixels."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                too_large = image.width * image.height > MAX_PIXELS
                if not too_large:
                    image.load()
    except Image.DecompressionBombError:
        too_large = True
    except Exception as error:  # noqa: BLE001  (on damaged bytes Pillow's decoders raise nearly anything)
        problem = f"cannot be decoded ({type(error).__name__})"
        raise fail("image_unreadable", problem=problem, remedy=remedy) from None
    if too_large:
        raise fail("image_too_large", problem="has too many pixels", remedy=remedy)
    return image


def fit_image(grey: UInt8, preprocessing: Preprocessing) -> UInt8:
    """Fit grey pixels [height, width] into the square [size, size]."""
    geometry = geometry_of(preprocessing, width=grey.shape[1], height=grey.shape[0])
    return square(grey, geometry, preprocessing.image_size)


def square_mask(record: Record, *, root: Path, geometry: Geometry, size: int) -> UInt8:
    """Return [size, size] of 0 and 1: the mask by the geometry of its image, thresholded at one half."""
    lung = read_mask(record, root=root, width=geometry.width, height=geometry.height)
    fitted = square_lung(lung, geometry, size)
    if not fitted.any():
        fail = partial(cell_error, where=root, row=record.row, column="mask", value=record.mask)
        problem = f"marks too little lung to be left at {size} x {size} pixels"
        raise fail("mask_empty", problem=problem, remedy="Mark the lung, or leave the cell empty.")
    return fitted


def square_lung(lung: npt.NDArray[np.bool_], geometry: Geometry, size: int) -> UInt8:
    """Return [size, size] of 0 and 1 of a mask at the size of its image, thresholded at one half."""
    return (square(lung.astype(np.uint8) * 255, geometry, size) >= 128).astype(np.uint8)  # noqa: PLR2004


def geometry_of(preprocessing: Preprocessing, *, width: int, height: int) -> Geometry:
    """Return where an image of this size lies in the square."""
    size, longest = preprocessing.image_size, max(width, height)
    new_width, new_height = size, size
    if preprocessing.fit == "pad":
        new_width, new_height = (max(1, round(side * size / longest)) for side in (width, height))
    offsets = ((size - new_width) // 2, (size - new_height) // 2)
    return Geometry(width, height, new_width / width, new_height / height, *offsets)


def square(pixels: UInt8, geometry: Geometry, size: int) -> UInt8:
    """Resize into the square; Pillow's bilinear filter widens when reducing, so nothing aliases or rings."""
    width, height = round(geometry.width * geometry.scale_x), round(geometry.height * geometry.scale_y)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return place(np.asarray(resized), geometry, size)


def place(resized: UInt8, geometry: Geometry, size: int) -> UInt8:
    """Return the square with an image of its final size in it and zeros around."""
    canvas = np.zeros((size, size), np.uint8)
    (height, width), (left, top) = resized.shape, (geometry.offset_x, geometry.offset_y)
    canvas[top : top + height, left : left + width] = resized
    return canvas


def unfit(squared: UInt8, geometry: Geometry) -> UInt8:
    """Map pixels of the square back to the original matrix [height, width], bilinearly."""
    width, height = round(geometry.width * geometry.scale_x), round(geometry.height * geometry.scale_y)
    left, top = geometry.offset_x, geometry.offset_y
    inside = Image.fromarray(squared[top : top + height, left : left + width])
    return np.asarray(inside.resize((geometry.width, geometry.height), Image.Resampling.BILINEAR))
