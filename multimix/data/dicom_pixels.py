"""From the stored values of a DICOM radiograph to grey pixels in a square (PS3.3 C.11.1, C.7.6.3).

The bits that the header promises are checked against those that occur, padding is left out, the modality LUT
applied, the image fitted into its square, scaled between two percentiles of its unpadded part, and last, once,
MONOCHROME1 is inverted.
"""

import re
import struct
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from multimix.data.decode import Geometry, Preprocessing, geometry_of, place
from multimix.data.dicom import TECHNICAL, DicomError, quiet, read, syntax_of, text
from multimix.data.manifest import UInt8
from multimix.data.pseudonyms import Pseudonyms

PIXEL_VERSION: Final = "percentile-0.5-99.5-v1"
PERCENTILES: Final = (0.5, 99.5)
_PLUGINS: Final = {  # one decoder a syntax, so that two sites get equal pixels whatever else is installed
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pillow",  # of 8 bits; nothing decodes 12
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    RLELossless: "pylibjpeg",
}
_FRAME_MARKERS: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xF7})  # start of frame: JPEG, JPEG-LS
SYNTAXES: Final = (*_PLUGINS, JPEGLossless, JPEGLosslessSV1)  # those whose decoders are packages of their own
_PIXELS: Final = (
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PixelData",
)
_SEGMENTATION: Final = ("SegmentSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_END_OF_IMAGE: Final = b"\xff\xd9"  # marker; padding may follow, and the delimiter of the fragments
_TAIL_BYTES: Final = 32
_OVERLAY_BIT_POSITIONS: Final = (0x60000102, 0x60020102)
PIXEL_ELEMENTS: Final = (*TECHNICAL, *_PIXELS, *_OVERLAY_BIT_POSITIONS)

Values = npt.NDArray[Any]


class Fitted(NamedTuple):
    """Grey pixels [size, size], where the image lies in them, the keyed hash of the stored values, and flags."""

    pixels: UInt8
    geometry: Geometry
    content: str
    flags: tuple[str, ...]


@cache
def decodable(syntax: str) -> bool:
    """Whether the decoder of a transfer syntax is known and installed."""
    try:
        decoder = get_decoder(UID(syntax))
    except NotImplementedError:
        return False
    plugin = _PLUGINS.get(UID(syntax))
    return bool(decoder.is_available) and (plugin is None or plugin in decoder.available_plugins)


def fit_radiograph(
    data: bytes, pseudonyms: Pseudonyms, preprocessing: Preprocessing, *, without_preamble: bool
) -> Fitted:
    """Decode one single-frame grey object into its square.

    Raises:
        DicomError: `syntax_unsupported`, `pixels_undecodable`, `pixels_flat`.
    """
    dataset = read(data, PIXEL_ELEMENTS, without_preamble=without_preamble, pixels=True)
    try:
        with quiet():
            return _fitted(dataset, pseudonyms, preprocessing)
    except (DicomError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001  (a panic in a decoder written in Rust is no Exception)
        raise DicomError("pixels_undecodable") from None


def _fitted(dataset: Dataset, pseudonyms: Pseudonyms, preprocessing: Preprocessing) -> Fitted:
    stored, flags = true_values(decoded(dataset), dataset)
    inverse = text(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1"
    geometry = geometry_of(preprocessing, width=stored.shape[1], height=stored.shape[0])
    values = _modality(stored, dataset)
    fitted = _scaled(values, _padding(stored, dataset), geometry, inverse=inverse)
    hashed = values.astype(np.uint16) if dataset.get("ModalityLUTSequence") else stored
    identity = f"{hashed.shape} {hashed.dtype.kind} {inverse} {-1 if _descends(dataset) else 1}".encode()
    content = pseudonyms.content(identity, b"", _little(hashed).tobytes())
    return Fitted(place(fitted, geometry, preprocessing.image_size), geometry, content, flags)


def _little(stored: Values) -> Values:
    """Return values of one width and byte order, so that equal images hash alike whatever file they came in."""
    signed = stored.dtype.kind == "i"
    kind = np.dtype(np.int32) if signed else np.min_scalar_type(int(stored.max()))
    return np.ascontiguousarray(stored, kind.newbyteorder("<"))


def decoded(dataset: Dataset) -> Values:
    """Return the stored values [rows, columns] with every allocated bit as it is.

    Raises:
        DicomError: `syntax_unsupported` if no installed decoder reads the transfer syntax.
    """
    syntax = UID(syntax_of(dataset))
    if not decodable(syntax):
        raise DicomError("syntax_unsupported")
    if syntax in {JPEGLSLossless, JPEGLSNearLossless} and _END_OF_IMAGE not in dataset.PixelData[-_TAIL_BYTES:]:
        raise DicomError("pixels_undecodable")  # CharLS searches 20 s for the end of a truncated stream
    _check_size(dataset, syntax)
    array, _ = get_decoder(syntax).as_array(
        dataset,
        index=0,
        raw=True,
        decoding_plugin=_PLUGINS.get(syntax, ""),
        correct_unused_bits=False,  # type: ignore[arg-type]
    )
    return np.asarray(array)


def _check_size(dataset: Dataset, syntax: UID) -> None:
    """Refuse a compressed image whose own size is not that of the header: it would be cut into other rows.

    Raises:
        DicomError: `matrix_wrong`.
    """
    if not syntax.is_encapsulated or syntax == RLELossless:
        return
    size = _coded_size(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    if size is not None and size != (int(dataset.Rows), int(dataset.Columns)):
        raise DicomError("matrix_wrong")


def _coded_size(stream: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) as a JPEG, JPEG-LS or JPEG 2000 stream states them; None if it states none."""
    found = re.search(rb"\xff\x4f\xff\x51.{4}(.{16})", stream[:_TAIL_BYTES], re.DOTALL)
    if found:
        right, bottom, left, top = struct.unpack(">4I", found[1])
        return bottom - top, right - left
    at = stream.find(b"\xff\xd8") + 2
    while 1 < at <= len(stream) - 9 and stream[at] == 0xFF:  # noqa: PLR2004
        marker = stream[at + 1]
        if marker in _FRAME_MARKERS:
            rows, columns = struct.unpack(">2H", stream[at + 5 : at + 9])
            return rows, columns
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def true_values(stored: Values, dataset: Dataset) -> tuple[Values, tuple[str, ...]]:
    """Return the values that BitsStored means, or those that are there if BitsStored cannot be true.

    A header that promises fewer bits than occur would wrap bright pixels to dark; pydicom masks them silently.
    Legacy overlays live in the unused bits (PS3.5 8.1.2): where the bits above are such planes, they are masked.
    """
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    shift = max(0, int(dataset.get("HighBit", bits - 1)) + 1 - bits)
    if shift and shift + bits <= allocated:
        stored = stored >> shift
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if low <= int(stored.min()) and int(stored.max()) <= high:
        return stored, ()
    planes = sum(1 << int(dataset[tag].value or 0) >> shift for tag in _OVERLAY_BIT_POSITIONS if tag in dataset)
    above = int(np.bitwise_or.reduce(stored, axis=None)) >> bits << bits
    if planes > 1 and (signed or not above & ~planes):
        stored = stored & ((1 << bits) - 1)
        if not signed:
            return stored, ()
    if signed and int(stored.min()) >= 0 and int(stored.max()) < 1 << bits:
        return ((stored.astype(np.int32) ^ (1 << (bits - 1))) - (1 << (bits - 1))), ()  # sign not extended
    return stored, ("bits_stored_wrong",)


def _modality(stored: Values, dataset: Dataset) -> Values:
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, dataset), np.float32)
    values = stored.astype(np.float32)
    return -values if _descends(dataset) else values  # percentiles undo any other slope and intercept


def _descends(dataset: Dataset) -> bool:
    return not dataset.get("ModalityLUTSequence") and float(dataset.get("RescaleSlope") or 1) < 0


def _padding(stored: Values, dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Return where the values are padding, or None."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    span = 1 << 8 * stored.dtype.itemsize
    ends = [int(first), int(first if last is None else last)]
    # Some write the value with the wrong sign.
    ends = [int(np.int64(end).astype(stored.dtype)) if -span // 2 <= end < span else end for end in ends]
    padding: npt.NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return padding if padding.any() else None


def _scaled(values: Values, padding: npt.NDArray[np.bool_] | None, geometry: Geometry, *, inverse: bool) -> UInt8:
    """Return the image at its size in the square; padding is black whatever the polarity.

    Raises:
        DicomError: `pixels_flat` if the percentiles are equal or nothing but padding is there.
    """
    size = (round(geometry.width * geometry.scale_x), round(geometry.height * geometry.scale_y))
    inside = None
    if padding is not None:
        share = Image.fromarray(~padding).convert("L").resize(size, Image.Resampling.BILINEAR)
        inside = np.asarray(share) >= 128  # noqa: PLR2004  (at least half of it is image)
        if not inside.any():
            raise DicomError("pixels_flat")
        values = np.where(padding, np.float32(values[~padding].mean()), values)
    small = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    low, high = np.percentile(small if inside is None else small[inside], PERCENTILES)
    if not high > low:
        raise DicomError("pixels_flat")
    grey = np.rint(np.clip((small - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    if inverse:
        grey = 255 - grey
    return grey if inside is None else np.where(inside, grey, 0).astype(np.uint8)
