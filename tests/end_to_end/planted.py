"""Sentinels that stand for what identifies a person, objects full of them, and a search for them in any encoding.

Every stem is a string that nothing else contains. Objects carry one in each element whose VR can hold it; only the
elements that make an object a radiograph, and its pixels, are left as they are.
"""

import base64
import hashlib
import urllib.parse
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from PIL import Image
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from multimix.data.dicom import TECHNICAL
from multimix.data.dicom_pixels import PIXEL_ELEMENTS

TEXT, FAMILY, GIVEN, IDENTIFIER, FILE, FOLDER = "Zqxvkj", "Zqxnachn", "Zqxvorn", "ZQXID7319", "zqxdatei", "zqxordner"
UID_ROOT, NUMBER, WEB = "1.2.826.0.1.3680043.9.7133731", "731946285", "zqxkrankenhaus"
DATE, TIME = "19370214", "231957.7319"
DATES = (DATE, "1937-02-14", "14.02.1937", "02/14/1937", "14/02/1937", "1937/02/14", "14 Feb 1937", "February 14, 1937")
STEMS = (TEXT, FAMILY, GIVEN, IDENTIFIER, FILE, FOLDER, UID_ROOT[-11:], NUMBER, WEB, *DATES, TIME)
ISSUER = f"{TEXT}ISSUER"
NAME = f"{FAMILY}äme^{GIVEN}ame^Q"

_WORDS = {
    "AE": TEXT.upper(), "CS": TEXT.upper(), "SH": TEXT, "LO": f"{TEXT} {FAMILY}äme, {GIVEN}ame", "LT": f"{TEXT} {DATE}",
    "ST": f"{TEXT} {GIVEN}ame {FAMILY}äme", "UC": TEXT, "UT": f"{TEXT} {IDENTIFIER}", "PN": NAME, "DA": DATE, "TM": TIME,
    "DT": f"{DATE}{TIME}", "UR": f"https://{WEB}.example/{TEXT}?id={IDENTIFIER}", "IS": NUMBER, "DS": NUMBER,
    "UL": int(NUMBER), "SL": int(NUMBER), "FD": float(NUMBER), "UV": int(NUMBER), "SV": int(NUMBER),
    "OB": f"{TEXT}{FAMILY}  ".encode(), "OW": f"{TEXT}{GIVEN} ".encode(), "UN": f"{TEXT}{GIVEN} ".encode(),
    "OB or OW": f"{TEXT}{FAMILY}  ".encode(),
}  # fmt: skip
_KEPT = {*TECHNICAL, *PIXEL_ELEMENTS, "SpecificCharacterSet", "LengthToEnd"}
_KEPT_GROUPS = {0x0000, 0x0002, 0x7FE0, 0xFFFE}
_TAGGED = {"AE", "CS", "SH"}


# ------------------------------------------------------------------------------------------------------- the planting
def fill(dataset: Dataset, number: int) -> int:
    """Put a sentinel into each element that can hold one and has no value yet; return how many."""
    elements = {tag: element for tag, element in _sentinels().items() if tag not in dataset}
    dataset.update(elements)
    dataset.PatientID, dataset.IssuerOfPatientID = f"{IDENTIFIER}-{number}", ISSUER
    dataset.AccessionNumber, dataset.PatientName = f"{IDENTIFIER}A{number}", NAME
    return len(elements)


@cache
def _sentinels() -> Dataset:
    """Return an element of each standard tag whose VR can hold a sentinel, and a few private and repeated ones."""
    found = Dataset()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 in _KEPT_GROUPS or keyword in _KEPT or not keyword:
            continue
        if vr == "SQ":
            found.add_new(tag, "SQ", Sequence([_item(tag, depth=0 if tag % 16 else 3)]))
        elif vr == "UI":
            found.add_new(tag, "UI", f"{UID_ROOT}.{tag}")
        elif vr in _WORDS:
            word = f"{_WORDS[vr]}{tag:08X}" if vr in _TAGGED else _WORDS[vr]
            found.add_new(tag, "OB" if vr == "OB or OW" else vr, word)
    for tag in (0x50000022, 0x60000022, 0x60001500):  # of a curve and an overlay
        found.add_new(tag, "LO", _WORDS["LO"])
    block = found.private_block(0x0009, f"{TEXT} CREATOR", create=True)
    for offset, vr in enumerate(("LO", "PN", "UN", "DA", "UT")):
        block.add_new(offset, vr, _WORDS[vr])
    return found


def _item(tag: int, depth: int) -> Dataset:
    item = Dataset()
    item.PatientName, item.PatientBirthDate = NAME, DATE
    item.ReferencedSOPInstanceUID, item.TextValue = f"{UID_ROOT}.{tag}", _WORDS["UT"]
    if depth:
        item.add_new(tag, "SQ", Sequence([_item(tag, depth - 1)]))
    return item


# -------------------------------------------------------------------------------------------------------- the search
def needles(identifiers: Iterable[str] = ()) -> dict[str, bytes]:
    """Return what to look for by a name; in lower case unless the name starts with base64."""
    found = {f"{code} of {stem}": needle for stem in STEMS for code, needle in _encoded(stem)}
    for text in identifiers:
        for algorithm in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b"):
            digest = hashlib.new(algorithm, text.encode())
            found[f"{algorithm} of {text}"] = digest.hexdigest()[:16].encode()
            found[f"base64 {algorithm} of {text}"] = base64.b64encode(digest.digest()[:9])
            found[f"base64 raw {algorithm} of {text}"] = digest.digest()[:8]
    return found


def _encoded(stem: str) -> Iterator[tuple[str, bytes]]:
    plain = stem.lower()
    yield "utf-8 or latin-1", plain.encode()
    yield "utf-16-le", plain.encode("utf-16-le")
    yield "utf-16-be", plain.encode("utf-16-be")
    yield "reversed", plain[::-1].encode()
    for case in {stem, stem.lower(), stem.upper()}:
        yield f"hex {case}", case.encode().hex().encode()
        yield f"percent {case}", "".join(f"%{byte:02x}" for byte in case.encode()).encode()
        yield f"quoted {case}", urllib.parse.quote(case, safe="").lower().encode()
        for shift in range(3):
            text = base64.b64encode(bytes(shift) + case.encode())
            end = (shift + len(case)) * 8 // 6  # the last character that only the stem decides
            yield f"base64 {case} {shift}", text[-(-shift * 8 // 6) : end]


def traces(data: bytes, wanted: dict[str, bytes]) -> list[str]:
    """Return the names of the needles in the data."""
    lower = data.lower()
    found = [name for name, needle in wanted.items() if needle in (data if name.startswith("base64") else lower)]
    return found


def traces_in_folder(folder: Path, wanted: dict[str, bytes]) -> list[str]:
    """Search names and contents of all files of a folder, SQLite files page by page as they are, and pictures' metadata."""
    found = []
    for path in sorted(folder.rglob("*")):
        found += [f"{name} in a name" for name in traces(str(path.relative_to(folder)).encode(), wanted)]
        if path.is_symlink() or not path.is_file():
            continue
        found += [f"{name} in {path.name}" for name in traces(path.read_bytes(), wanted)]
        if path.suffix == ".png":
            with Image.open(path) as picture:
                found += [f"metadata in {path.name}"] if picture.info else []
    return found
