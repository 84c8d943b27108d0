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

import numpy as np
import pydicom
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from multimix.data.dicom import TECHNICAL
from multimix.data.dicom_pixels import PIXEL_ELEMENTS
from multimix.data.phantom_dicom import PhantomDicom, dicom_bytes, phantom_dataset
from tests.dicom_seg import lung_segmentation

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
_TECHNICAL = {*TECHNICAL, "SpecificCharacterSet", "SOPInstanceUID"}
_SYNTAXES = ("explicit_le", "implicit_le", "jpeg2000_lossless", "rle_lossless")


# ------------------------------------------------------------------------------------------------------- the planting
def fill(dataset: Dataset, number: int) -> int:
    """Put a sentinel into each element that can hold one and has no value yet; return how many."""
    elements = {tag: element for tag, element in _sentinels().items() if tag not in dataset}
    dataset.update(elements)
    dataset.add_new("PatientID", "LO", f"{IDENTIFIER}-{number}")  # a new element: the others are shared
    dataset.add_new("IssuerOfPatientID", "LO", ISSUER)
    dataset.add_new("AccessionNumber", "SH", f"{IDENTIFIER}A{number}")
    dataset.add_new("PatientName", "PN", NAME)
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


# ------------------------------------------------------------------------------------------------------- its sources
def radiograph(number: int, *, syntax: str = "explicit_le", **changes: str) -> pydicom.Dataset:
    """Return a phantom's radiograph with a sentinel in every element that can hold one."""
    dataset = phantom(number, syntax)
    kept = {
        element.tag: element
        for element in dataset
        if element.keyword in _TECHNICAL or element.tag.group in {0x0028, 0x7FE0}
    }
    meta, dataset = dataset.file_meta, pydicom.Dataset(kept)
    dataset.file_meta = meta
    return plant(dataset, number, **{"BodyPartExamined": "CHEST", "ViewPosition": "PA", **changes})


def phantom(number: int, syntax: str = "explicit_le") -> pydicom.Dataset:
    image = np.random.default_rng(number).integers(0, 256, (80, 72), np.uint8)
    image[10:70, 10:60] = np.linspace(20, 240, 50, dtype=np.uint8)
    options = PhantomDicom(transfer_syntax=syntax, modality="CR")
    uid = f"{UID_ROOT}.{number}"
    return phantom_dataset(image, patient_id="-", accession="-", seed=number, options=options, sop_instance_uid=uid)


def segmentation(number: int, segments: str) -> pydicom.Dataset:
    """Return a DICOM SEG of a phantom with sentinels in whatever does not make it one."""
    dataset = lung_segmentation(phantom(number), np.indices((80, 72))[0] > 30, segments=segments)
    for segment in dataset.SegmentSequence:
        segment.SegmentLabel, segment.SegmentDescription = TEXT, NAME
    return plant(dataset, number, ContentLabel=TEXT.upper(), ContentCreatorName=NAME)


def plant(dataset: pydicom.Dataset, number: int, **changes: str) -> pydicom.Dataset:
    assert fill(dataset, number) > 4000
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    meta = dataset.file_meta
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.SourceApplicationEntityTitle = meta.ImplementationVersionName = TEXT.upper()
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = UID_ROOT, TEXT.encode()
    dataset.preamble = f"{FAMILY} {GIVEN} {IDENTIFIER}".encode().ljust(128, b"\0")
    return dataset


@cache
def dicom_files() -> dict[str, bytes]:
    """Return a file for each thing that can become of one, named by the outcome that is expected."""
    stored = [
        radiograph(i, syntax=syntax, SpecificCharacterSet=("ISO_IR 192", "ISO_IR 100")[i % 2])
        for i, syntax in enumerate(_SYNTAXES)
    ]
    others = {
        "view_unknown": radiograph(10, ViewPosition=""),
        "view_unknown too": radiograph(11, ViewPosition=TEXT.upper()),
        "body_part_unknown": radiograph(12, BodyPartExamined=""),
        "body_part_unknown too": radiograph(13, BodyPartExamined=TEXT.upper()),
        "other_body_part": radiograph(14, BodyPartExamined="HAND"),
        "lateral_view": radiograph(15, ViewPosition="LL"),
        "other_modality": radiograph(16, Modality=TEXT.upper()),
        "not_grey": radiograph(17, PhotometricInterpretation=TEXT.upper()),
        "duplicate_pixels_other_patient": radiograph(0, PatientID=f"{IDENTIFIER}-18", SOPInstanceUID=f"{UID_ROOT}.18"),
        "stored lung": segmentation(0, "lung"),
        "seg_no_lung": segmentation(1, "heart"),
    }
    files = {f"stored {i}": dicom_bytes(each) for i, each in enumerate(stored)}
    files |= {reason: dicom_bytes(each) for reason, each in others.items()}
    plain = files["stored 0"]
    syntax = pydicom.uid.ExplicitVRLittleEndian.encode()
    files["syntax_unsupported"] = files["view_unknown"].replace(syntax, UID_ROOT[-len(syntax) :].encode(), 1)
    files["no_preamble"] = plain[132:]
    files["not_dicom"] = f"{NAME};{IDENTIFIER};{DATE}".encode() * 50
    files["header_unreadable"] = plain.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00PN\x02\x00")
    files["pixels_undecodable"] = files["stored 2"].replace(f"{UID_ROOT}.2".encode(), f"{UID_ROOT}.8".encode())[:-3000]
    files["file_empty"] = b""
    return files


def write_sources(folder: Path) -> Path:
    """Write folders, a manifest and labels files, good and bad, all named with sentinels; return where."""
    source = folder / f"{FOLDER} {NAME} {DATE}"
    for number, (name, data) in enumerate(dicom_files().items()):
        path = source / "dicom" / f"{FOLDER}{number % 3}" / f"{FILE}_{GIVEN}_{number}_{name.split()[0]}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (source / "dicom" / "DICOMDIR").write_bytes(f"{TEXT}{IDENTIFIER}".encode())
    (source / "dicom" / f"{FILE}.lnk").symlink_to(path)
    write_pictures(source)
    labels = {
        "good": f"patient_id,issuer,label,mask\n{IDENTIFIER}-1,{ISSUER},pneumonia,{FILE} mask.png\n",
        "by accession": f"accession,label\n{IDENTIFIER}A2,normal\n{IDENTIFIER}A99,normal\n",
        "unknown word": f"sop_instance_uid,label\n{UID_ROOT}.0,{TEXT}\n",
        "unknown column": f"sop_instance_uid,{TEXT}\n{UID_ROOT}.0,{NAME}\n",
        "no mask": f"sop_instance_uid,mask\n{UID_ROOT}.0,{FILE} {NAME}.png\n",
        "outside": f"sop_instance_uid,mask\n{UID_ROOT}.0,../{FOLDER}/../../{FILE}.png\n",
        "conflict": f"patient_id,label\n{IDENTIFIER},normal\n{IDENTIFIER},pneumonia\n",
        "two splits": f"patient_id,issuer,accession,split\n{IDENTIFIER}-1,{ISSUER},,train\n,,{IDENTIFIER}A1,test\n",
        "malformed": f"patient_id,label\n{IDENTIFIER},normal,{NAME}\n",
        "quote": f'patient_id,label\n"{IDENTIFIER},{NAME}\n',
    }
    for name, text in labels.items():
        (source / f"{name}.csv").write_text(text)
    (source / "latin.csv").write_bytes(f"patient_id,label\n{NAME},normal\n".encode("latin-1"))
    header = "image,patient_id,label,sex\n"
    (source / "manifest missing.csv").write_text(f"{header}{FILE} {NAME}.png,{IDENTIFIER},normal,\n")
    (source / "manifest word.csv").write_text(f"{header}{FILE} 0.png,{IDENTIFIER},{TEXT},\n")
    (source / "manifest column.csv").write_text(f"image,patient_id,{TEXT}\n{FILE} 0.png,{IDENTIFIER},{NAME}\n")
    return source


def write_pictures(source: Path) -> None:
    """Write a manifest of pictures, with sentinels in every column and in their metadata, and a mask."""
    words = PngInfo()
    words.add_text(TEXT, f"{NAME} {IDENTIFIER}")
    words.add_itxt("Comment", f"{NAME} {DATE}", zip=True)
    noise = np.random.default_rng(99).integers(0, 256, (3, 80, 72), np.uint8)
    for number in range(3):
        Image.fromarray(noise[number]).save(source / f"{FILE} {number}.png", pnginfo=words)
    exif = Image.Exif()
    exif[0x010E], exif[0x9003] = NAME, "1937:02:14 10:00:00"
    Image.fromarray(noise[0]).resize((90, 90)).save(source / f"{FILE} 3.jpg", exif=exif, comment=f"{NAME} {WEB}")
    for name, edge in ((f"{FILE} mask.png", 30), (f"{FILE} mask of 1.png", 40)):
        Image.fromarray(np.uint8(255) * (np.indices((80, 72))[0] > edge)).save(source / name, pnginfo=words)
    header = "image,patient_id,mask,source,site,label,finding,view,licence,mask_origin,sex,age,orig_name,orig_w,orig_h"
    rows = [
        f"{FILE} {n}.{'jpg' if n == 3 else 'png'},{IDENTIFIER}M{n},{FILE + ' mask of 1.png' if n == 1 else ''},{TEXT}source,"
        f"{WEB},normal,{TEXT} {NAME},{TEXT}PA,{TEXT}licence,{TEXT} behind heart,{TEXT}F,{NUMBER},{FILE},{TEXT},{TEXT}"
        for n in range(4)
    ]
    (source / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")


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
    return [name for name, needle in wanted.items() if needle in (data if name.startswith("base64") else lower)]


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
