"""Images that look wrong, for the site's preflight check: inverted, rotated, mostly black, full of text.

Runs on every image at intake: 0.6 to 1 ms at 256 pixels and 2 to 3 ms at 512 on one core. A flag asks a person to
look; nothing is corrected or refused here.

Orientation: the content, less its empty borders, is reduced, its grey levels are replaced by ranks, and ten
coefficients of its cosine transform are weighed: those even from left to right, so that the heart's side (and a
mirror image) does not count. A quarter turn transposes them and an inversion changes their signs, so one
transform scores all eight ways the film can lie; their softmax must prefer another way by e^2 to raise a flag.
The ten weights maximise the softmax likelihood (ridge 1e-3, every source weighing the same) on 60 phantoms and
1,306 public radiographs: those of the six sources below whose `source/patient_id` has a BLAKE2b hash with an
even first byte. The other thresholds were chosen on these too.

Text: strokes within 40 grey levels of the brightest pixel, counted where both directions occur close together.

Measured on the other half of the patients (1,276 images fitted to 256 pixels, each transformed inside its content):

    per cent                        cohen   jsrt  kermany  montgomery  nih14  shenzhen    all
    inverted or rotated, falsely      1.6    0.0      0.0         0.0    0.0       0.0    0.2
    inverted, found                  89.8   99.2     99.4       100.0   97.8     100.0   98.1
    turned by 90, found              93.8  100.0     98.7       100.0   99.4     100.0   98.9
    turned by 180, found             93.0  100.0     95.2       100.0   98.1     100.0   97.6
    turned by 270, found             93.0   99.2     99.4       100.0   98.9     100.0   98.7
    text-heavy, falsely               0.8    0.0      0.0         0.0    0.0       0.0    0.1
    10-pixel text, found             99.2   96.9     99.7        82.7   99.4      99.7   98.6
    14-pixel text, found             98.4   96.2    100.0       100.0   99.7     100.0   99.4
    mostly black, falsely             0.0    0.0      0.0         0.0    0.0       0.0    0.0

Text was 3 to 7 lines of grey 255 in Pillow's default font over 3 to 10 % of the content, anywhere on it. At 64,
128 and 512 pixels the rates are alike. Text that was burned in before a film was reduced is found less often
(32 pixels high at 512, reduced to 256: 94 %; 20 pixels: 62 %), and black letters on white are not looked for.
"""

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
"""Fewer grey levels than these are no picture."""

REDUCED: Final = 32
"""Side in pixels to which the content is squeezed for its orientation."""
TRIM_CONTRAST: Final = 0.1
"""A row or column with less contrast than this share of the film's is empty."""
MINIMUM_SIDE: Final = 16
"""Pixels below which a content is a strip without an orientation."""
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
"""How much each wave says that the film is upright; the module's docstring says how they were fitted."""
LOG_ODDS: Final = 2.0
"""Evidence against an upright film of right polarity from which a flag is raised, nats."""

STROKE_CONTRAST: Final = 14
"""Grey levels by which a stroke exceeds both its sides."""
SATURATED_WITHIN: Final = 40
"""Grey levels below the brightest pixel down to which a stroke may be of a character."""
CELL: Final = 16
"""Side in pixels of the cells in which strokes of both directions must meet."""
CELL_STROKES: Final = 3
"""Stroke pixels of each direction below which a cell counts as none."""
LARGE_SIZE: Final = 384
"""From this image size on, strokes are up to three pixels wide rather than one."""
TEXT_LENGTH: Final = 0.15
"""Share of stroke pixels above which there is much text, times image size and divided by `reach`."""


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
