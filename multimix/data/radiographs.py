"""Which DICOM objects are frontal chest radiographs: the rules, apart from any file format.

Everything that is not plainly a frontal chest radiograph for presentation is set aside with a reason code; what
might be one waits for a person. Free text of a study is matched against fixed words and then forgotten.
Codes: DICOM PS3.3 C.8.11 (DX), PS3.16 CID 4 (regions), CID 4010 (views).
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Decision = Literal["accept", "review", "aside"]

CR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.1"
DX_FOR_PRESENTATION: Final = "1.2.840.10008.5.1.4.1.1.1.1"
DX_FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"
RADIOGRAPHS: Final = frozenset({CR_IMAGE, DX_FOR_PRESENTATION, SECONDARY_CAPTURE})
MODALITIES: Final = frozenset({"CR", "DX"})
SMALLEST_SIDE: Final = 64
ASPECT_TOLERANCE: Final = 0.01
_NOT_FRONTAL: Final = {"lateral": "lateral_view", "other": "other_view"}

CHEST_STEMS: Final = ("CHEST", "THORAX", "TORAX")
CHEST_WORDS: Final = frozenset({"LUNG", "LUNGS", "POUMON", "POUMONS", "CXR"})
OTHER_WORDS: Final = frozenset(
    [
        "ABDOMEN",
        "ABD",
        "KUB",
        "PELVIS",
        "HIP",
        "HIPS",
        "FEMUR",
        "KNEE",
        "KNEES",
        "TIBIA",
        "FIBULA",
        "LEG",
        "ANKLE",
        "FOOT",
        "FEET",
        "TOE",
        "TOES",
        "CALCANEUS",
        "HEEL",
        "PATELLA",
        "EXTREMITY",
        "HAND",
        "HANDS",
        "WRIST",
        "FINGER",
        "FINGERS",
        "THUMB",
        "FOREARM",
        "ELBOW",
        "HUMERUS",
        "ARM",
        "SHOULDER",
        "CLAVICLE",
        "SCAPULA",
        "SKULL",
        "HEAD",
        "FACE",
        "FACIAL",
        "SINUS",
        "SINUSES",
        "ORBIT",
        "ORBITS",
        "MANDIBLE",
        "JAW",
        "TEETH",
        "TOOTH",
        "DENTAL",
        "NECK",
        "CSPINE",
        "TSPINE",
        "LSPINE",
        "SPINE",
        "CERVICAL",
        "LUMBAR",
        "SACRUM",
        "COCCYX",
        "BREAST",
        "MAMMO",
        "STERNUM",
        "RIB",
        "RIBS",
        "COLON",
        "BLADDER",
        "KIDNEY",
        "WHOLEBODY",
    ]
)
CHEST_CODES: Final = frozenset({"816094009", "51185008", "43799004", "39607008", "T-D3000", "T-D3200", "T-28000"})
View = Literal["PA", "AP", "frontal"]
VIEW_NAMES: Final[dict[str, View]] = {"PA": "PA", "AP": "AP", "FRONTAL": "frontal"}
OTHER_VIEWS: Final = frozenset({"LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "OBL", "OBLIQUE", "DECUBITUS"})
VIEW_CODES: Final[dict[str, View]] = {
    "399348003": "AP",
    "R-10206": "AP",
    "272479007": "PA",
    "399066004": "PA",
    "R-10214": "PA",
    "R-40888": "PA",
    "399033003": "frontal",
    "R-10202": "frontal",
}
UNKNOWN_VIEWS: Final = frozenset({"261665006", "R-41198"})  # a code is wanted even where nobody knows
LATERAL_CODES: Final = frozenset(
    {"399067008", "399173006", "399198007", "49370004", "30730003", "R-102CD", "R-10236", "R-10232"}
)
LATERAL_WORDS: Final = frozenset({"LAT", "LATERAL", "LL", "RL", "LLAT", "RLAT", "SEITLICH"})
FRONTAL_WORDS: Final = frozenset({"PA", "AP", "FRONTAL", "PORTABLE"})


@dataclass(frozen=True)
class Header:
    """What the rules read of one object: technical values; three fields of free text that are not kept."""

    sop_class: str = ""
    modality: str = ""
    presentation_intent: str = ""
    frames: int = 1
    burned_in: str = ""
    samples: int = 1
    photometric: str = ""
    rows: int = 0
    columns: int = 0
    body_part: str = ""
    region_codes: tuple[str, ...] = ()
    view: str = ""
    view_codes: tuple[str, ...] = ()
    orientation: tuple[str, ...] = ()
    pixel_aspect: float = 1.0  # height of a pixel by its width
    descriptions: str = ""

    def __repr__(self) -> str:
        """Hide the free text."""
        return f"Header({self.modality}, {self.rows} x {self.columns})"


class Verdict(NamedTuple):
    """Decision, its reason code ("" when accepted) and the view ("" when unknown)."""

    decision: Decision
    reason: str
    view: str


def judge(header: Header, *, maximum_pixels: int) -> Verdict:
    """Decide by the header alone, before a pixel is decoded."""
    reason = _kind(header) or _matrix(header, maximum_pixels)
    if reason:
        return Verdict("aside", reason, "")
    region, view = _region(header), _view(header)
    reason = "other_body_part" if region == "other" else _NOT_FRONTAL.get(view, "")
    if reason:
        return Verdict("aside", reason, "")
    doubt = _doubt(header, region, view)
    return Verdict("review" if doubt else "accept", doubt, view)


def _doubt(header: Header, region: str, view: str) -> str:
    """Return why a person has to look, or ""."""
    if not view:
        return "view_unknown"
    if _says_lateral(header):
        return "view_contradicted"
    return "" if region == "chest" else "body_part_unknown"


def _kind(header: Header) -> str:
    """Return why this is no single grey radiograph for presentation, or ""."""
    if header.sop_class == DX_FOR_PROCESSING or header.presentation_intent == "FOR PROCESSING":
        return "for_processing"
    if header.modality not in MODALITIES or header.sop_class not in RADIOGRAPHS:
        return "other_modality"
    if header.frames != 1:
        return "multi_frame"
    if header.burned_in == "YES":
        return "burned_in_annotation"
    if header.samples != 1 or header.photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        return "not_grey"
    return ""


def _matrix(header: Header, maximum_pixels: int) -> str:
    if header.rows * header.columns > maximum_pixels:
        return "too_many_pixels"
    if abs(header.pixel_aspect - 1) > ASPECT_TOLERANCE:
        return "pixels_not_square"
    return "too_few_pixels" if min(header.rows, header.columns) < SMALLEST_SIDE else ""


def _region(header: Header) -> Literal["chest", "other", ""]:
    """Return the region of the body: the coded one, else the named one, else what the description says."""
    named = _named_region(header.body_part) or _named_region(header.descriptions)
    if not header.region_codes:
        return named
    if CHEST_CODES.intersection(header.region_codes):
        return "chest"
    return "" if named == "chest" else "other"  # a code that we do not know may still be the chest's


def _named_region(text: str) -> Literal["chest", "other", ""]:
    """Return the region that a text names; "" for none, for both, and for words that we do not know."""
    words = _words(re.sub("(?i)head up", "", text))  # how a patient lies
    chest = any(word.startswith(CHEST_STEMS) for word in words) or bool(words & CHEST_WORDS)
    other = bool(words & OTHER_WORDS) or any("ABD" in word for word in words)
    if chest == other:
        return ""
    return "chest" if chest else "other"


def _view(header: Header) -> View | Literal["lateral", "other", ""]:
    """Return the view: the coded one, else the named one; orientation and description can only rule one out."""
    codes = frozenset(header.view_codes) - UNKNOWN_VIEWS
    if codes:
        return _coded_view(codes)
    named = named_view(header.view)
    if named:
        return named
    return "lateral" if _says_lateral(header) else ""


def _says_lateral(header: Header) -> bool:
    """Whether orientation, codes or description call the image lateral: rows of a frontal one run from side to side."""
    words = _words(header.descriptions)
    return (header.orientation[:1] != () and header.orientation[0][:1] in {"A", "P"}) or bool(
        LATERAL_CODES.intersection(header.view_codes) or (words & LATERAL_WORDS and not words & FRONTAL_WORDS)
    )


def named_view(text: str) -> View | Literal["lateral", "other", ""]:
    """Return the view that a text names, such as "PA" or "AP SUPINE"; "" if it names none that we know."""
    words = _words(text)
    if words & OTHER_VIEWS:
        return "other"
    if words & LATERAL_WORDS:
        return "lateral"
    named = {VIEW_NAMES[word] for word in words if word in VIEW_NAMES}
    if len(named) > 1:
        return "other"
    return named.pop() if named else ""


def _coded_view(codes: frozenset[str]) -> View | Literal["lateral", "other"]:
    known = {VIEW_CODES[code] for code in codes if code in VIEW_CODES}
    if len(known) == 1:
        return known.pop()
    return "lateral" if LATERAL_CODES.intersection(codes) else "other"


def _words(text: str) -> frozenset[str]:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()  # accents off
    return frozenset(re.findall(r"[A-Z]+", plain.upper()))
