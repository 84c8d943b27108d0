"""What a worker does with one item: read, judge, decode, fit. Pure, and the only code that sees identifiers.

It runs in a limited process of its own (`client.intake.workers`); what it returns holds pseudonyms, technical
values and grey pixels, whatever the file says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from client.intake.journal import is_decoded
from multimix.data.decode import (
    Geometry,
    Preprocessing,
    geometry_of,
    read_image,
    read_mask,
    square,
    square_lung,
)
from multimix.data.dicom import DicomError, Keys, parse_header
from multimix.data.dicom_pixels import PIXEL_VERSION, SYNTAXES, decodable, fit_radiograph
from multimix.data.dicom_seg import lung_of
from multimix.data.manifest import Record, UInt8
from multimix.data.pseudonyms import Pseudonyms
from multimix.data.quality import assess
from multimix.data.radiographs import SEGMENTATION, Decision, judge
from multimix.errors import ManifestError

RULES_VERSION: Final = 1  # raise it when a rule changes: what was set aside is then examined again

Kind = Literal["image", "mask", "nothing"]


@dataclass(frozen=True)
class Rules:
    """What a worker has to know."""

    secret: bytes = field(repr=False)
    preprocessing: Preprocessing
    maximum_pixels: int = 64_000_000
    maximum_bytes: int = 512 << 20
    without_preamble: bool = False
    journal: Path | None = field(default=None, repr=False)  # where files that are decoded already are known


class Item(NamedTuple):
    """Something to examine: a file, the bytes of one or how to get them, and what is known of it beforehand.

    `key` names the item to the journal; `keys` come from a manifest, for files that carry no identifiers.
    """

    key: str
    form: Literal["dicom", "picture", "picture_mask"]
    content: Path | bytes | Callable[[], bytes]
    keys: Keys | None = None
    view: str = ""

    def __repr__(self) -> str:
        """Hide path and bytes."""
        return f"Item({self.form})"


@dataclass(frozen=True, eq=False)
class Examined:
    """The outcome of one item; without pixels unless it is an image or mask that may be kept."""

    kind: Kind
    decision: Decision
    reason: str = ""
    file_hash: str = ""
    keys: Keys = Keys("", "", "")  # noqa: RUF009  (immutable)
    view: str = ""
    modality: str = ""
    syntax: str = ""
    pixels: UInt8 | None = None  # [size, size]; of a mask 0 and 1
    geometry: Geometry | None = None
    content: str = ""
    flags: tuple[str, ...] = ()


def aside(reason: str, **known: str) -> Examined:
    """Return the outcome of something that is not kept."""
    return Examined("nothing", "aside", reason, **known)  # type: ignore[arg-type]


def examine(item: Item, rules: Rules) -> Examined:
    """Return what becomes of an item; raises MemoryError only (the worker's limit)."""
    pseudonyms = Pseudonyms(rules.secret)
    data, reason = _bytes(item.content, rules.maximum_bytes)
    if reason:
        return aside(reason)
    file_hash = pseudonyms.content(data, *(key.encode() for key in item.keys or ()), item.view.encode())
    if rules.journal is not None and is_decoded(rules.journal, file_hash):
        return aside("unchanged", file_hash=file_hash)
    if item.form == "dicom":
        return _dicom(data, file_hash, rules, pseudonyms)
    if item.form == "picture_mask":
        return _picture_mask(item, file_hash, rules, pseudonyms)
    return _picture(item, file_hash, rules, pseudonyms)


def _bytes(content: Path | bytes | Callable[[], bytes], maximum: int) -> tuple[bytes, str]:
    """Return the bytes of an item, or a reason why not."""
    try:
        if isinstance(content, Path):
            size = content.stat().st_size
            data = content.read_bytes() if size <= maximum else b""
        else:
            data = content if isinstance(content, bytes) else content()
            size = len(data)
    except OSError:
        return b"", "file_unreadable"
    if size > maximum:
        return b"", "file_too_large"
    return data, "" if data else "file_empty"


def _dicom(data: bytes, file_hash: str, rules: Rules, pseudonyms: Pseudonyms) -> Examined:
    modality = syntax = ""
    try:
        header, keys, syntax = parse_header(data, pseudonyms, without_preamble=rules.without_preamble)
        modality = header.modality if header.modality in {"CR", "DX", "SEG"} else "other"
        if header.sop_class == SEGMENTATION:
            return _segmentation(data, file_hash, keys.patient, rules, pseudonyms)
        decision, reason, view = judge(header, maximum_pixels=rules.maximum_pixels)
        if decision == "aside":
            return aside(reason, modality=modality, syntax=syntax, file_hash=file_hash)
        fitted = fit_radiograph(data, pseudonyms, rules.preprocessing, without_preamble=rules.without_preamble)
    except DicomError as error:
        return aside(error.reason, modality=modality, syntax=syntax, file_hash=file_hash)
    return Examined(
        kind="image",
        decision=decision,
        reason=reason,
        file_hash=file_hash,
        keys=keys if keys.patient else keys._replace(patient=nobody(pseudonyms, keys.uid)),
        view=view,
        modality=modality,
        syntax=syntax,
        pixels=fitted.pixels,
        geometry=fitted.geometry,
        content=fitted.content,
        flags=fitted.flags + _quality(fitted.pixels, fitted.geometry),
    )


def nobody(pseudonyms: Pseudonyms, uid: str) -> str:
    """Return a patient of its own for an image that names none: never a group that strangers share."""
    return pseudonyms.of("patient unknown", uid)


def _segmentation(data: bytes, file_hash: str, patient: str, rules: Rules, pseudonyms: Pseudonyms) -> Examined:
    image_uid, mask = lung_of(data, pseudonyms, maximum_pixels=rules.maximum_pixels)
    height, width = mask.shape
    geometry = geometry_of(rules.preprocessing, width=width, height=height)
    squared = square_lung(mask, geometry, rules.preprocessing.image_size)
    if not squared.any():
        raise DicomError("mask_empty")
    content = pseudonyms.content(mask.tobytes())
    return Examined(
        "mask", "accept", "", file_hash, Keys(image_uid, patient, ""), "", "SEG", "", squared, geometry, content
    )


def _picture(item: Item, file_hash: str, rules: Rules, pseudonyms: Pseudonyms) -> Examined:
    if not isinstance(item.content, Path) or item.keys is None:
        return aside("file_unreadable")
    if item.view in {"lateral", "other"}:
        return aside(f"{item.view}_view", file_hash=file_hash)
    record = Record(image=item.content.name, patient_id="-")
    try:
        grey = read_image(record, root=item.content.parent)
    except ManifestError as error:
        return aside(error.reason, file_hash=file_hash)
    geometry = geometry_of(rules.preprocessing, width=grey.shape[1], height=grey.shape[0])
    pixels = square(grey, geometry, rules.preprocessing.image_size)
    content = pseudonyms.content(f"{grey.shape} u False 1".encode(), b"", grey.tobytes())
    return Examined(
        kind="image",
        decision="accept",
        file_hash=file_hash,
        keys=item.keys,
        view=item.view,
        modality="picture",
        pixels=pixels,
        geometry=geometry,
        content=content,
        flags=_quality(pixels, geometry),
    )


def _picture_mask(item: Item, file_hash: str, rules: Rules, pseudonyms: Pseudonyms) -> Examined:
    if not isinstance(item.content, Path):
        return aside("file_unreadable")
    record = Record(image="-", patient_id="-", mask=item.content.name)
    try:
        lung = read_mask(record, root=item.content.parent)
    except ManifestError as error:
        return aside(error.reason, file_hash=file_hash)
    geometry = geometry_of(rules.preprocessing, width=lung.shape[1], height=lung.shape[0])
    squared = square_lung(lung, geometry, rules.preprocessing.image_size)
    if not squared.any():
        return aside("mask_empty", file_hash=file_hash)
    content = pseudonyms.content(lung.tobytes())
    return Examined("mask", "accept", "", file_hash, Keys("", "", ""), "", "picture", "", squared, geometry, content)


def _quality(pixels: UInt8, geometry: Geometry) -> tuple[str, ...]:
    width, height = round(geometry.width * geometry.scale_x), round(geometry.height * geometry.scale_y)
    return assess(pixels, left=geometry.offset_x, top=geometry.offset_y, width=width, height=height).flags


def rules_fingerprint(rules: Rules) -> str:
    """Return what decides about an item besides its bytes, as text."""
    able = "".join("01"[decodable(syntax)] for syntax in SYNTAXES)
    sizes = f"{rules.maximum_pixels} {rules.maximum_bytes}"
    return f"{RULES_VERSION} {PIXEL_VERSION} {sizes} {rules.without_preamble} {able}"
