"""Images that look wrong, for the site's preflight check: inverted, rotated, mostly black, full of text."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from multimix.data.manifest import UInt8
from multimix.errors import InputError

Float64 = npt.NDArray[np.float64]

INVERTED: Final = "looks_inverted"
ROTATED: Final = "looks_rotated"
BLACK: Final = "mostly_black"
TEXT: Final = "text_heavy"

NEAR_ZERO: Final = 10
"""Grey levels up to this one count as black."""
BLACK_SHARE: Final = 0.8
FLAT_LEVELS: Final = 16

REDUCED: Final = 32
TRIM_CONTRAST: Final = 0.1
MINIMUM_SIDE: Final = 16
WAVES: Final = 5
WEIGHTS: Final = np.array(
    [
        # half waves across: 0, 1, 2, 3, 4; down the rows: 0, 1, 2, 3
        [0, 0, -30, 0, 25],
        [-20, 0, 36, 0, 33],
        [0, 0, -25, 0, -44],
        [-17, 0, -46, 0, 36],
    ]
)
LOG_ODDS: Final = 2.0

STROKE_CONTRAST: Final = 14
SATURATED_WITHIN: Final = 40
CELL: Final = 16
CELL_STROKES: Final = 3
LARGE_SIZE: Final = 384
TEXT_LENGTH: Final = 0.15


@dataclass(frozen=True)
class Quality:
    """What `assess` saw in the content of one image."""

    flags: tuple[str, ...]
    """Of `looks_inverted`, `looks_rotated`, `mostly_black` and `text_heavy`, in this order; empty when all is well."""
    mean: int
    """Mean grey level, 0 to 255."""
    rotation_degrees: int
    """Counter-clockwise turn that the content seems to have had: 0, 90, 180 or 270. Undo it clockwise."""
    levels: int
    """Grey levels between the 1st and the 99th percentile."""
    black_share: float
    """Share of pixels near zero."""
    text_share: float
    """Share of pixels that look like strokes of burned-in characters."""


def assess(image: UInt8, *, left: int, top: int, width: int, height: int) -> Quality:
    """Return what looks wrong with the content rectangle of a fitted image [size, size].

    Zero padding around the rectangle is not looked at. A black or flat image is given no orientation, and
    neither is a strip narrower than 16 pixels.

    Raises:
        InputError: `image_not_square_grey8` or `content_outside_image`.
    """
    content = _content(image, left, top, width, height)
    picture = Image.fromarray(content)
    counts = np.array(picture.histogram())
    mean = int(counts @ np.arange(256) / content.size + 0.5)
    black_share = float(counts[: NEAR_ZERO + 1].sum() / content.size)
    low, high = np.searchsorted(counts.cumsum(), (0.01 * content.size, 0.99 * content.size))
    levels = int(high - low) + 1
    black = black_share > BLACK_SHARE or levels < FLAT_LEVELS
    inverted, degrees = (False, 0) if black or min(content.shape) < MINIMUM_SIDE else _orientation(picture)
    reach = 1 if len(image) < LARGE_SIZE else 2
    text_share = _text_share(255 - content if inverted else content, reach=reach)
    text_heavy = text_share > TEXT_LENGTH * reach / len(image)
    found = {INVERTED: inverted, ROTATED: degrees > 0, BLACK: black, TEXT: text_heavy}
    flags = tuple(flag for flag, raised in found.items() if raised)
    return Quality(flags, mean, degrees, levels, black_share, text_share)


def _content(image: UInt8, left: int, top: int, width: int, height: int) -> UInt8:
    if image.dtype != np.uint8 or image.ndim != 2 or image.shape[0] != image.shape[1]:  # noqa: PLR2004
        raise InputError("image_not_square_grey8", "The image must be grey8 [size, size].")
    size = len(image)
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size or top + height > size:
        raise InputError(
            "content_outside_image",
            f"The content, {width} x {height} pixels at ({left}, {top}), is not inside {size} x {size} pixels.",
        )
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _orientation(picture: Image.Image) -> tuple[bool, int]:
    """Return whether the content looks inverted, and its counter-clockwise turn in degrees."""
    reduced = np.asarray(picture.resize((REDUCED, REDUCED), Image.Resampling.BOX))
    waves = _waves(_ranks(_trim(reduced)))
    signs = (-1.0) ** np.arange(WAVES)
    upright = []
    for _ in range(4):
        upright.append(float((WEIGHTS * waves[: len(WEIGHTS)]).sum()))
        waves = signs * waves.T  # a quarter turn clockwise: transpose, then mirror left to right
    scores = np.array([upright, [-score for score in upright]])  # inversion changes the sign of every wave
    polarity = np.logaddexp.reduce(scores, axis=1)
    turn = np.logaddexp.reduce(scores, axis=0)
    inverted = bool(polarity[1] - polarity[0] > LOG_ODDS)
    rotated = np.logaddexp.reduce(turn[1:]) - turn[0] > LOG_ODDS
    return inverted, 90 * (1 + int(turn[1:].argmax())) if rotated else 0


def _trim(grey: UInt8) -> UInt8:
    """Cut off borders without content: rows and columns of one grey level, a marker or line apart."""
    for _ in range(2):  # columns show as empty once the rows above and below are gone
        ordered = np.sort(grey, axis=None).astype(np.int16)
        contrast = TRIM_CONTRAST * (ordered[ordered.size * 19 // 20] - ordered[ordered.size // 20])
        rows, columns = (np.flatnonzero(_spread(grey, axis) > contrast) for axis in (1, 0))
        if min(rows.size, columns.size) < REDUCED // 4:
            break
        grey = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return grey


def _spread(grey: UInt8, axis: int) -> npt.NDArray[np.uint8]:
    ordered = np.sort(grey, axis=axis)
    tail = grey.shape[axis] // 20
    spread: npt.NDArray[np.uint8] = ordered.take(-1 - tail, axis=axis) - ordered.take(tail, axis=axis)
    return spread


def _ranks(grey: UInt8) -> Float64:
    """Replace grey levels by their mid-rank in -0.5 to 0.5: a site's window and gamma no longer matter."""
    counts = np.bincount(grey.ravel(), minlength=256)
    ranks: Float64 = ((counts.cumsum() - counts / 2) / grey.size - 0.5)[grey]
    return ranks


def _waves(values: Float64) -> Float64:
    """Return the 5 x 5 lowest coefficients of the cosine transform: half waves down, half waves across."""
    down, across = (np.cos(np.pi / n * np.outer(np.arange(WAVES), np.arange(n) + 0.5)) for n in values.shape)
    waves: Float64 = down @ values @ across.T / values.size
    return waves


def _text_share(content: UInt8, *, reach: int) -> float:
    """Return the share of pixels that are strokes of bright characters.

    A stroke stands out from what lies `reach` pixels away on both sides. Characters have strokes across and
    down within one cell of 16 pixels; ribs, wires, tubes and the edge of the field run in one direction.
    """
    if min(content.shape) <= 2 * reach:
        return 0.0
    inner, ends = slice(reach, -reach), (slice(None, -2 * reach), slice(2 * reach, None))
    centre = content[inner, inner]
    bright = centre >= max(0, int(content.max()) - SATURATED_WITHIN)
    upright = bright & _stands_out(centre, content[inner, ends[0]], content[inner, ends[1]])
    level = bright & _stands_out(centre, content[ends[0], inner], content[ends[1], inner])
    strokes = np.minimum(_cells(upright), _cells(level))
    return float(strokes[strokes >= CELL_STROKES].sum() / content.size)


def _stands_out(centre: UInt8, one: UInt8, other: UInt8) -> npt.NDArray[np.bool_]:
    side = np.minimum(np.maximum(one, other), 255 - STROKE_CONTRAST) + STROKE_CONTRAST  # stays uint8, for speed
    return centre > side


def _cells(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count the marked pixels of each cell, row by row; few are marked, so they are listed."""
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    across = -(-mask.shape[1] // CELL)
    return np.bincount(rows // CELL * across + columns // CELL, minlength=across * -(-mask.shape[0] // CELL))
