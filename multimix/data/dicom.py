"""What is read of a DICOM object: an allow-list of technical elements, and pseudonyms.

Identifiers are read to be hashed and never leave the function that reads them. pydicom's warnings and exceptions
quote values, so none of them gets out: what goes wrong becomes a reason code.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import AllTransferSyntaxes, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from multimix.data.pseudonyms import Pseudonyms
from multimix.data.radiographs import Header
from multimix.errors import MultiMixError

_PREAMBLE_BYTES: Final = 128
_IDENTIFIERS: Final = ("SOPInstanceUID", "PatientID", "IssuerOfPatientID", "AccessionNumber")
TECHNICAL: Final = (
    "SOPClassUID",
    "Modality",
    "PresentationIntentType",
    "NumberOfFrames",
    "BurnedInAnnotation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "ViewPosition",
    "ViewCodeSequence",
    "PatientOrientation",
    "PixelAspectRatio",
    "ImagerPixelSpacing",
    "PixelSpacing",
)
_FREE_TEXT: Final = ("ProtocolName", "SeriesDescription", "StudyDescription")  # matched against words, not kept
HEADER_ELEMENTS: Final = _IDENTIFIERS + TECHNICAL + _FREE_TEXT


class DicomError(MultiMixError):
    """A reason code why an object gives no pixels; nothing of the object is in it."""

    def __init__(self, reason: str) -> None:
        """Keep the reason alone."""
        super().__init__(reason)
        self.reason = reason


class Keys(NamedTuple):
    """Pseudonyms of an object, its patient ("" if the object names none) and its accession number ("" likewise)."""

    uid: str
    patient: str
    accession: str
    number: str = ""  # the patient's identifier alone, whoever issued it


class Parsed(NamedTuple):
    """Header, pseudonyms and transfer syntax of an object; "unknown" for a syntax that the standard does not name."""

    header: Header
    keys: Keys
    syntax: str


@contextmanager
def quiet() -> Iterator[None]:
    """Let no warning out: pydicom's quote values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parse_header(data: bytes, pseudonyms: Pseudonyms, *, without_preamble: bool) -> Parsed:
    """Read the allow-listed elements before the pixels; `data` may end where the pixels begin or later.

    Raises:
        DicomError: `not_dicom`, `no_preamble` (DICOM, but without preamble and the option), `header_unreadable`.
    """
    dataset = read(data, HEADER_ELEMENTS, without_preamble=without_preamble, pixels=False)
    try:
        with quiet():
            return Parsed(_header(dataset), _keys(dataset, pseudonyms), _public(syntax_of(dataset)))
    except DicomError:
        raise
    except Exception:  # noqa: BLE001  (on damaged values pydicom raises nearly anything)
        raise DicomError("header_unreadable") from None


def read(data: bytes, elements: Sequence[str | int], *, without_preamble: bool, pixels: bool) -> Dataset:
    """Read the named elements, of the data set's head or of all of it.

    Raises:
        DicomError: `not_dicom`, `no_preamble`, `header_unreadable`.
    """
    preamble = data[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM"
    try:
        with quiet():
            dataset = pydicom.dcmread(
                io.BytesIO(data),
                force=not preamble,
                stop_before_pixels=not pixels,
                specific_tags=[Tag(element) for element in elements],
            )
            sop_class = str(dataset.get("SOPClassUID", ""))
    except InvalidDicomError:
        raise DicomError("not_dicom") from None
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (as above)
        raise DicomError("header_unreadable" if preamble else "not_dicom") from None
    if not preamble and not sop_class.startswith("1.2.840.10008."):
        raise DicomError("not_dicom")
    if not preamble and not without_preamble:
        raise DicomError("no_preamble")
    return dataset


def _public(syntax: str) -> str:
    """Return a standard transfer syntax; a private one may name who made it up."""
    return syntax if syntax in AllTransferSyntaxes else "unknown"


def syntax_of(dataset: Dataset) -> str:
    """Return the transfer syntax; without file meta, the one pydicom found the elements to be in."""
    meta = getattr(dataset, "file_meta", None)
    if meta is not None and "TransferSyntaxUID" in meta:
        return str(meta.TransferSyntaxUID)
    implicit, little = dataset.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _keys(dataset: Dataset, pseudonyms: Pseudonyms) -> Keys:
    uid, patient, issuer, accession = (text(dataset, name) for name in _IDENTIFIERS)
    if not uid:
        raise DicomError("no_sop_instance_uid")
    return Keys(
        uid=uid_key(pseudonyms, uid),
        patient=patient_key(pseudonyms, patient, issuer) if patient else "",
        accession=accession_key(pseudonyms, accession) if accession else "",
        number=number_key(pseudonyms, patient) if patient else "",
    )


def uid_key(pseudonyms: Pseudonyms, uid: str) -> str:
    """Return the pseudonym of a SOP instance UID."""
    return pseudonyms.of("sop instance uid", uid.strip())


def patient_key(pseudonyms: Pseudonyms, patient_id: str, issuer: str = "") -> str:
    """Return the pseudonym of a patient identifier and its issuer."""
    return pseudonyms.of("patient", issuer.strip(), patient_id.strip())


def number_key(pseudonyms: Pseudonyms, patient_id: str) -> str:
    """Return the pseudonym of a patient identifier alone."""
    return pseudonyms.of("patient number", patient_id.strip())


def accession_key(pseudonyms: Pseudonyms, accession: str) -> str:
    """Return the pseudonym of an accession number."""
    return pseudonyms.of("accession", accession.strip())


def text(item: Dataset, name: str) -> str:
    """Return an element as text, "" if absent."""
    value = item.get(name)
    return "" if value is None else str(value).strip().strip("\0")


def _header(dataset: Dataset) -> Header:
    regions, views = (codes(dataset, name) for name in ("AnatomicRegionSequence", "ViewCodeSequence"))
    orientation = dataset.get("PatientOrientation") or ()
    return Header(
        sop_class=text(dataset, "SOPClassUID"),
        modality=text(dataset, "Modality").upper(),
        presentation_intent=text(dataset, "PresentationIntentType").upper(),
        frames=int(dataset.get("NumberOfFrames") or 1),
        burned_in=text(dataset, "BurnedInAnnotation").upper(),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        photometric=text(dataset, "PhotometricInterpretation").upper(),
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        body_part=text(dataset, "BodyPartExamined"),
        region_codes=regions,
        view=text(dataset, "ViewPosition").upper(),
        view_codes=views,
        orientation=(orientation,) if isinstance(orientation, str) else tuple(str(each) for each in orientation),
        pixel_aspect=_pixel_aspect(dataset),
        descriptions=" ".join(text(dataset, name) for name in _FREE_TEXT),
    )


def _pixel_aspect(dataset: Dataset) -> float:
    """Return the height of a pixel by its width; 1 where nobody says, or nothing that can be."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        pair = dataset.get(name)
        if isinstance(pair, MultiValue) and len(pair) == 2:  # noqa: PLR2004
            height, width = (float(value) for value in pair)
            if height > 0 and width > 0:
                return height / width
    return 1.0


def codes(dataset: Dataset, name: str) -> tuple[str, ...]:
    """Return the code values of the items of a sequence; codes that somebody made up at home are left out."""
    items = dataset.get(name) or ()
    public = [item for item in items if not text(item, "CodingSchemeDesignator").upper().startswith(("99", "L"))]
    return tuple(code for item in public if (code := text(item, "CodeValue")))


def silence() -> None:
    """Keep pydicom's log, which quotes values, out of every handler of this process."""
    pydicom_config.logger.disabled = True
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
