"""Nothing that names a person leaves the files it came in: not into the site's folder, not onto the terminal.

Files, folders, labels and manifests full of sentinels (tests/end_to_end/planted.py) go through every command, each in
a process of its own with every log at its most talkative; then all that was written and printed is searched.
"""

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pynetdicom import AE

from multimix.data.dicom import TECHNICAL
from multimix.data.phantom_dicom import PhantomDicom, dicom_bytes, phantom_dataset
from tests.dicom_seg import lung_segmentation
from tests.end_to_end import planted
from tests.end_to_end.planted import FAMILY, FILE, FOLDER, GIVEN, IDENTIFIER, ISSUER, NAME, TEXT, UID_ROOT, WEB
from tests.orthanc import free_port, running_orthanc

RUN = """
import json, sys
from client.cli import app
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments)
    except SystemExit as end:
        print("exit code", end.code, *arguments[:1], file=sys.stderr)
"""
TALKATIVE = """
import logging
logging.basicConfig(level=1)
logging.captureWarnings(True)
logging.getLogger().debug("talkative")
"""
ACCEPTED = ("explicit_le", "implicit_le", "jpeg2000_lossless", "rle_lossless")
KEPT = {*TECHNICAL, "SpecificCharacterSet", "SOPInstanceUID"}


# ------------------------------------------------------------------------------------------------------- the sources
def radiograph(number: int, *, syntax: str = "explicit_le", **changes: str) -> pydicom.Dataset:
    """Return a phantom's radiograph with a sentinel in every element that can hold one."""
    dataset = phantom(number, syntax)
    kept = {element.tag: element for element in dataset if element.keyword in KEPT or element.tag.group in {0x0028, 0x7FE0}}
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
    assert planted.fill(dataset, number) > 4000
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    meta = dataset.file_meta
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.SourceApplicationEntityTitle = meta.ImplementationVersionName = TEXT.upper()
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = UID_ROOT, TEXT.encode()
    dataset.preamble = f"{FAMILY} {GIVEN} {IDENTIFIER}".encode().ljust(128, b"\0")
    return dataset


def dicom_files() -> dict[str, bytes]:
    """Return a file for each thing that can become of one, named by the outcome that is expected."""
    stored = [
        radiograph(i, syntax=syntax, SpecificCharacterSet=("ISO_IR 192", "ISO_IR 100")[i % 2])
        for i, syntax in enumerate(ACCEPTED)
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
    files["not_dicom"] = f"{NAME};{IDENTIFIER};{planted.DATE}".encode() * 50
    files["header_unreadable"] = plain.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00PN\x02\x00")
    files["pixels_undecodable"] = files["stored 2"].replace(f"{UID_ROOT}.2".encode(), f"{UID_ROOT}.8".encode())[:-3000]
    files["file_empty"] = b""
    return files


def write_sources(folder: Path) -> Path:
    """Write folders, a manifest and labels files, good and bad, all named with sentinels; return where."""
    source = folder / f"{FOLDER} {NAME} {planted.DATE}"
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
    words.add_itxt("Comment", f"{NAME} {planted.DATE}", zip=True)
    noise = np.random.default_rng(99).integers(0, 256, (3, 80, 72), np.uint8)
    for number in range(3):
        Image.fromarray(noise[number]).save(source / f"{FILE} {number}.png", pnginfo=words)
    exif = Image.Exif()
    exif[0x010E], exif[0x9003] = NAME, "1937:02:14 10:00:00"
    Image.fromarray(noise[0]).resize((90, 90)).save(source / f"{FILE} 3.jpg", exif=exif, comment=f"{NAME} {WEB}")
    mask = Image.fromarray(((np.indices((80, 72))[0] > 30) * 255).astype(np.uint8))
    mask.save(source / f"{FILE} mask.png", pnginfo=words)
    header = "image,patient_id,mask,source,site,label,finding,view,licence,mask_origin,sex,age,orig_name,orig_w,orig_h"
    rows = [
        f"{FILE} {n}.{'jpg' if n == 3 else 'png'},{IDENTIFIER}M{n},{FILE + ' mask.png' if n == 1 else ''},{TEXT}source,"
        f"{WEB},normal,{TEXT} {NAME},{TEXT}PA,{TEXT}licence,{TEXT} behind heart,{TEXT}F,{planted.NUMBER},{FILE},{TEXT},{TEXT}"
        for n in range(4)
    ]
    (source / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")


# ------------------------------------------------------------------------------------------------------ the commands
@dataclass
class Sweep:
    """A site, what its commands said, and where a search after each of them found a sentinel."""

    folder: Path
    source: Path
    said: dict[str, str] = field(default_factory=dict)
    found: dict[str, list[str]] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def start(self, *commands: tuple[str, ...]) -> subprocess.Popen:
        """Start commands, one after the other, in one process."""
        scratch = self.folder / "scratch"
        environment = {"HOME": str(scratch), "TMPDIR": str(scratch), "PYTHONPATH": str(self.folder / "path"), "COLUMNS": "2000"}
        return subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(commands)],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
            env={**os.environ, **environment, "MULTIMIX_SITE": str(self.site), "PYTHONWARNINGS": "always", "OMP_NUM_THREADS": "1"},
        )

    def end(self, name: str, process: subprocess.Popen, stdin: str = "") -> str:
        """Wait for a process and search what it said and wrote; return what it printed on standard output."""
        printed, complained = process.communicate(stdin.encode(), timeout=120)
        self.said[name] = complained.decode()
        self.found[name] = planted.traces(printed + complained, WANTED)
        for written in (self.site, self.folder / "scratch"):
            self.found[name] += planted.traces_in_folder(written, WANTED)
        return printed.decode()

    def run(self, name: str, *commands: tuple[str, ...], stdin: str = "") -> str:
        return self.end(name, self.start(*commands), stdin)


WANTED = planted.needles([f"{IDENTIFIER}-{n}" for n in range(20)] + [f"{UID_ROOT}.{n}" for n in range(20)] + [NAME, ISSUER])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Every command that takes in, shows or removes, in the order a site would use them."""
    folder = tmp_path_factory.mktemp("planted")
    for name in ("path", "scratch"):
        (folder / name).mkdir()
    (folder / "path" / "sitecustomize.py").write_text(TALKATIVE)
    sweep = Sweep(folder, write_sources(folder))
    port, source = free_port(), sweep.source
    sweep.run("init", ("init", "planted", "--image-size", "64"))
    settings = (sweep.site / "site.toml").read_text().replace("minimum_cohort = 10", "minimum_cohort = 1")
    receiver = f'[receiver]\nport = {port}\nallowed_calling_ae = ["SENDER"]\nminimum_free_bytes = 0\n'
    (sweep.site / "site.toml").write_text(f"{settings}\n{receiver}")
    sweep.summary = json.loads(sweep.run("intake", ("intake", str(source / "dicom"), "--labels", str(source / "good.csv"), "--json")))
    sweep.run("intake of pictures", ("intake", str(source / "manifest.csv")))
    sweep.queue = json.loads(sweep.run("review", ("review", "--json")))
    sweep.run("review on a sheet", ("review",), ("review", "accept", sweep.queue[0]["image"], "--view", "PA"), ("page",), ("review", "reject", "--all"))
    sweep.shown = sweep.run("show", ("show",), ("show", "--json"), ("card", "--device", "cpu"), ("check",), ("check", "--json"), ("page",))
    bad = [path for path in sorted(source.glob("*.csv")) if path.stem not in {"good", "manifest"}]
    sweep.run(
        "mistakes",
        *(("intake", str(path)) if path.stem.startswith("manifest") else ("intake", "--labels", str(path)) for path in bad),
        ("intake", str(source / f"{FILE}{NAME}")),
        ("intake", str(source / "dicom"), "--without-preamble", "--labels", str(source / f"{FILE}.csv")),
        ("review", "accept", IDENTIFIER),
        ("intake", "--pacs"),
        ("show", "--site", str(source)),
        ("purge", "--patient", "--issuer", ISSUER),
        stdin=f"{IDENTIFIER}-99\n",
    )
    sweep.run("intake without preamble", ("intake", str(source / "dicom"), "--without-preamble"))
    receive(sweep, port)
    sweep.purged = sweep.run("purge", ("purge", "--patient", "--issuer", ISSUER, "--json"), ("intake", str(source / "dicom")), stdin=f"{IDENTIFIER}-1\n")
    return sweep


def receive(sweep: Sweep, port: int) -> None:
    """Send three files by C-STORE, after one association that is refused."""
    process = sweep.start(("receive", "--once", "--quiet", "1"))
    objects = [radiograph(20), segmentation(20, "lung"), radiograph(21, PhotometricInterpretation=TEXT.upper())]
    stranger, sender = AE(ae_title=TEXT.upper()), AE(ae_title="SENDER")
    for each in objects:
        for entity in (stranger, sender):
            entity.add_requested_context(each.SOPClassUID, each.file_meta.TransferSyntaxUID)
    deadline = time.monotonic() + 60
    while not (refused := stranger.associate("127.0.0.1", port, ae_title="MULTIMIX")).is_rejected:
        assert time.monotonic() < deadline
        refused.abort()
        time.sleep(0.2)
    association = sender.associate("127.0.0.1", port, ae_title="MULTIMIX")
    statuses = [association.send_c_store(each, originator_aet=TEXT.upper()).Status for each in objects]
    association.release()
    sweep.end("receive", process)
    sweep.sent = statuses


# ------------------------------------------------------------------------------------------------------------- tests
COMMANDS = [
    *("init", "intake", "intake of pictures", "review", "review on a sheet", "show", "mistakes", "intake without preamble"),
    *("receive", "purge"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_sentinel_is_written_or_printed_by(sweep, command):
    assert "talkative" in sweep.said[command]
    assert sweep.found[command] == []


def test_the_files_are_stored_reviewed_and_set_aside_as_if_nothing_were_planted(sweep):
    expected = Counter(name.split()[0] for name in dicom_files())
    assert sweep.summary["outcomes"] == expected + Counter(stored=1)  # and the mask of the labels file
    assert sweep.summary["holdings"]["labelled"] == 1
