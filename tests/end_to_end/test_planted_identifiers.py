"""Nothing that names a person leaves the files it came in: not into the site's folder, not onto the terminal.

Files, folders, labels and manifests full of sentinels (tests/end_to_end/planted.py) go through every command, each in
a process of its own with every log at its most talkative; then all that was written and printed is searched.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pynetdicom import AE

from multimix.data.phantom_dicom import dicom_bytes
from tests.end_to_end import planted
from tests.end_to_end.planted import (
    FAMILY,
    FILE,
    GIVEN,
    IDENTIFIER,
    ISSUER,
    NAME,
    TEXT,
    UID_ROOT,
    dicom_files,
    radiograph,
    segmentation,
    write_sources,
)
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


# ------------------------------------------------------------------------------------------------------ the commands
@dataclass
class Sweep:
    """A site, what its commands said, and where a search after each of them found a sentinel."""

    folder: Path
    said: dict[str, str] = field(default_factory=dict)
    found: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Sweep":
        """Make a site in a folder."""
        for name in ("path", "scratch"):
            (folder / name).mkdir()
        (folder / "path" / "sitecustomize.py").write_text(TALKATIVE)
        sweep = cls(folder)
        sweep.run("init", ("init", "planted", "--image-size", "64"))
        return sweep

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def start(self, *commands: tuple[str, ...]) -> subprocess.Popen:
        """Start commands, one after the other, in one process."""
        scratch = self.folder / "scratch"
        environment = {
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "PYTHONPATH": str(self.folder / "path"),
            "COLUMNS": "2000",
        }
        return subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(commands)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                **environment,
                "MULTIMIX_SITE": str(self.site),
                "PYTHONWARNINGS": "always",
                "OMP_NUM_THREADS": "1",
            },
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


WANTED = planted.needles(
    [f"{IDENTIFIER}-{n}" for n in range(20)] + [f"{UID_ROOT}.{n}" for n in range(20)] + [NAME, ISSUER]
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Every command that takes in, shows or removes, in the order a site would use them."""
    sweep = Sweep.of(tmp_path_factory.mktemp("planted"))
    port, source = free_port(), write_sources(sweep.folder)
    settings = (sweep.site / "site.toml").read_text().replace("minimum_cohort = 10", "minimum_cohort = 1")
    receiver = f'[receiver]\nport = {port}\nallowed_calling_ae = ["SENDER"]\nminimum_free_bytes = 0\n'
    (sweep.site / "site.toml").write_text(f"{settings}\n{receiver}")
    sweep.summary = json.loads(
        sweep.run("intake", ("intake", str(source / "dicom"), "--labels", str(source / "good.csv"), "--json"))
    )
    sweep.run("intake of pictures", ("intake", str(source / "manifest.csv")))
    sweep.queue = json.loads(sweep.run("review", ("review", "--json")))
    sweep.run(
        "review on a sheet",
        ("review",),
        ("review", "accept", sweep.queue[0]["image"], "--view", "PA"),
        ("page",),
        ("review", "reject", "--all"),
    )
    sweep.shown = sweep.run(
        "show", ("show",), ("show", "--json"), ("card", "--device", "cpu"), ("check",), ("check", "--json"), ("page",)
    )
    bad = [path for path in sorted(source.glob("*.csv")) if path.stem not in {"good", "manifest"}]
    sweep.run(
        "mistakes",
        *(
            ("intake", str(path)) if path.stem.startswith("manifest") else ("intake", "--labels", str(path))
            for path in bad
        ),
        ("intake", str(source / f"{FILE}{NAME}")),
        ("intake", str(source / "dicom"), "--without-preamble", "--labels", str(source / f"{FILE}.csv")),
        ("review", "accept", IDENTIFIER),
        ("intake", "--pacs"),
        ("show", "--site", str(source)),
        ("purge", "--patient", "--issuer", ISSUER),
        stdin=f"{IDENTIFIER}-99\n",
    )
    again = ("intake", str(source / "dicom"), "--labels", str(source / "good.csv"), "--without-preamble")
    sweep.run("intake without preamble", again)
    receive(sweep, port)
    sweep.purged = sweep.run(
        "purge",
        ("purge", "--patient", "--issuer", ISSUER, "--json"),
        ("intake", str(source / "dicom")),
        stdin=f"{IDENTIFIER}-1\n",
    )
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
pytestmark = pytest.mark.slow

COMMANDS = [
    *(
        "init",
        "intake",
        "intake of pictures",
        "review",
        "review on a sheet",
        "show",
        "mistakes",
        "intake without preamble",
    ),
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
    assert sweep.summary["holdings"]["masked"] == 2
    assert len(sweep.queue) == 4


def test_mistakes_are_refused_in_words_and_no_error_is_unforeseen(sweep):
    reasons = set(re.findall(r"cannot go on \((\w+)\)", sweep.said["mistakes"]))
    assert "internal_error" not in "".join(sweep.said.values())
    assert reasons == {
        *("label_conflict", "label_unknown", "labels_unreadable", "row_malformed", "column_unknown", "mask_missing"),
        *("image_missing", "source_missing", "review_unknown", "pacs_not_set", "site_missing"),
        "patient_unknown",
    }


def test_what_is_sent_is_stored_and_leaves_the_spool(sweep):
    assert sweep.sent == [0, 0, 0]
    assert list((sweep.site / "received").iterdir()) == []
    outcomes = Counter()
    for count, outcome in re.findall(r"\b(\d+) (not_grey|stored)\b", sweep.said["receive"]):  # a pause makes two lines
        outcomes[outcome] += int(count)
    assert outcomes == {"not_grey": 1, "stored": 2}


def test_the_card_of_a_manifest_with_free_text_in_its_view_column_names_known_views_only(sweep):
    (views,) = re.findall(r'"view": \{([^}]*)\}', sweep.shown)
    assert set(re.findall(r'"(\w+)":', views)) == {"PA", "frontal", "mixed"}


def test_a_purge_by_the_typed_identifier_finds_the_patient_and_proves_it(sweep):
    proof = json.loads(sweep.purged.splitlines()[0])
    assert (proof["images_removed"], proof["traces_found"]) == (1, 0)


@pytest.mark.orthanc
def test_no_sentinel_is_written_or_printed_by_an_intake_from_a_pacs(tmp_path):
    sweep = Sweep.of(tmp_path)
    with running_orthanc(tmp_path) as pacs:
        for each in (radiograph(30), radiograph(31, ViewPosition=""), radiograph(32, ViewPosition="LL")):
            pacs.upload(dicom_bytes(each))
        password = tmp_path / "password"
        password.write_text(pacs.password)
        password.chmod(0o600)
        settings = f'[pacs]\nurl = "{pacs.dicomweb}"\nusername = "{pacs.username}"\npassword_file = "{password}"\nretries = 0\n'
        with (sweep.site / "site.toml").open("a") as file:
            file.write(settings)
        summary = json.loads(sweep.run("intake", ("intake", "--pacs", "--json")))
    sweep.run("unreachable", ("intake", "--pacs"), ("check",))
    assert summary["outcomes"] == {"stored": 1, "view_unknown": 1, "lateral_view": 1}
    assert "pacs_unreachable" in sweep.said["unreachable"]
    assert not any(sweep.found.values())
    assert pacs.password not in "".join(sweep.said.values())


# -------------------------------------------------------------------------------------------------- positive controls
PATIENT = f"{IDENTIFIER}-3"
LEAKS = {
    "utf-8": NAME.encode(),
    "latin-1": NAME.encode("latin-1"),
    "utf-16": NAME.encode("utf-16-le"),
    "utf-16 of the other end": PATIENT.encode("utf-16-be"),
    "upper case": NAME.upper().encode(),
    "hexadecimal": PATIENT.encode().hex().upper().encode(),
    "base64": base64.b64encode(PATIENT.encode()),
    "base64 amid other text": base64.b64encode(f"x{PATIENT}y".encode()),
    "base64 amid more text": base64.b64encode(f"xy{NAME}".encode()),
    "an address": quote(f"https://pacs/{FILE}?name={NAME}").encode(),
    "an address all escaped": "".join(f"%{byte:02X}" for byte in PATIENT.encode()).encode(),
    "name parts the other way round": f"{GIVEN}ame {FAMILY}äme".encode(),
    "backwards": PATIENT[::-1].encode(),
    "a date as ISO has it": b"1937-02-14",
    "SHA-256 of a patient": hashlib.sha256(PATIENT.encode()).hexdigest().encode(),
    "MD5 of an UID, shortened": hashlib.md5(f"{UID_ROOT}.3".encode()).hexdigest()[:16].encode(),
    "SHA-1 of a patient in base64": base64.b64encode(hashlib.sha1(PATIENT.encode()).digest()),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_search_finds_what_leaks_as(sweep, tmp_path, leak):
    copied = tmp_path / "site"
    shutil.copytree(sweep.site, copied, symlinks=True)
    assert planted.traces_in_folder(copied, WANTED) == []
    with (copied / "intake" / "journal.sqlite").open("ab") as journal:
        journal.write(b"\0" + LEAKS[leak] + b"\0")
    assert planted.traces_in_folder(copied, WANTED) != []


def test_the_search_finds_a_deleted_row_in_the_free_pages_of_a_journal(sweep, tmp_path):
    shutil.copy(sweep.site / "intake" / "journal.sqlite", tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as journal:
        journal.execute("PRAGMA secure_delete = OFF")
        journal.execute("INSERT INTO meta VALUES ('note', ?)", (PATIENT + "." * 9000,))
        journal.commit()
        journal.execute("DELETE FROM meta WHERE key = 'note'")
        journal.commit()
        journal.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert journal.execute("SELECT count(*) FROM meta WHERE value LIKE 'ZQX%'").fetchone() == (0,)
    assert planted.traces_in_folder(tmp_path, WANTED) != []


def test_the_search_finds_text_in_the_metadata_of_a_contact_sheet(tmp_path):
    words = PngInfo()
    words.add_text("Comment", NAME, zip=True)
    Image.new("L", (8, 8)).save(tmp_path / "review.png", pnginfo=words)
    assert planted.traces_in_folder(tmp_path, WANTED) == ["metadata in review.png"]
