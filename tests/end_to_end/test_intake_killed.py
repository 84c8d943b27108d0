"""An intake that is killed at any moment leaves a site that opens, and the next one completes it as if nothing was.

SIGKILL ends the command, with or without the processes it has started, at moments drawn from a seed over the whole
length of an undisturbed run (tests/end_to_end/killable.py).
"""

import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from multimix.data.phantom_dicom import PhantomDicom, write_phantom_dicoms
from multimix.data.store import CURRENT, open_store
from tests.end_to_end.killable import Commands, gone

SIZE = 32
RECORD_BYTES = SIZE * SIZE
HANGING = """
import sys
from pathlib import Path
from client.intake.examine import Item, Rules
from client.intake.workers import Limits, Workers
from multimix.data.decode import Preprocessing
with Workers(Rules(secret=b"k" * 32, preprocessing=Preprocessing(32)), Limits(workers=2)) as workers:
    list(workers.examined(Item(str(i), "dicom", Path(sys.argv[i])) for i in (1, 2)))
"""


@dataclass
class Site:
    """A site folder, the phantoms it takes in, and the commands on it."""

    path: Path
    source: Path
    commands: Commands
    seconds: float = 0.0  # that the last command took

    def run(self, *arguments: str, text: str = "") -> None:
        self.seconds = self.commands.run(*arguments, "--site", str(self.path), text=text)

    def kill(self, rng: random.Random, undisturbed_s: float, *arguments: str, text: str = "") -> bool:
        """Kill a command at a moment of its run, all its processes or the first alone; whether it was still running."""
        after_s = rng.triangular(0.05, 1.1 * undisturbed_s, undisturbed_s)
        return self.commands.kill(after_s, *arguments, "--site", str(self.path), text=text, group=rng.random() < 0.7)

    def intake(self, folder: str = "DICOM") -> tuple[str, ...]:
        return ("intake", str(self.source / folder), "--labels", str(self.source / "labels.csv"))

    def copied(self, path: Path) -> "Site":
        """Return a copy; pseudonyms and hashes of the two are comparable."""
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.path, path, symlinks=True)
        return Site(path, self.source, self.commands)


# ------------------------------------------------------------------------------------------- what a site then holds
def journal_of(site: Site) -> dict[tuple[str, str], str]:
    """Return the hash of the pixels of each image and mask that the journal names, by kind and content."""
    path = site.path / "intake" / "journal.sqlite"
    if not path.exists() or not path.stat().st_size:
        return {}
    with closing(sqlite3.connect(path)) as index:
        assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not index.execute("SELECT 1 FROM sqlite_master").fetchone():
            return {}
        (number,) = index.execute("SELECT value FROM meta WHERE key = 'pool'").fetchone()
        rows = index.execute("SELECT kind, content, uid, record FROM items WHERE kind != 'nothing'").fetchall()
        orphans = index.execute("SELECT count(*) FROM files WHERE item NOT IN (SELECT id FROM items)").fetchone()
    assert orphans == (0,)
    for column in zip(*((content, uid, record) for kind, content, uid, record in rows if kind == "image"), strict=True):
        assert len(set(column)) == len(column)
    files = {"image": f"pool-{number}/images.u8", "mask": f"pool-{number}/masks.u8"}
    pixels = {kind: (site.path / "intake" / name) for kind, name in files.items()}
    return {(kind, content): record_hash(pixels[kind], record) for kind, content, _, record in rows}


def record_hash(path: Path, number: int) -> str:
    with path.open("rb") as file:
        file.seek(number * RECORD_BYTES)
        record = file.read(RECORD_BYTES)
    assert len(record) == RECORD_BYTES
    return hashlib.sha256(record).hexdigest()


def store_of(site: Site) -> dict[str, tuple]:
    """Return the rows of the current generation with the hashes of their pixels, by content; {} if there is none."""
    if not (site.path / "store" / CURRENT).is_symlink():
        return {}
    store = open_store(site.path / "store")
    columns = "content_hash, mask_hash, patient, view, label, mask_convention, split, width, height, brightness"
    with closing(sqlite3.connect(f"file:{store.path}/index.sqlite?mode=ro&immutable=1", uri=True)) as index:
        rows = index.execute(f"SELECT {columns} FROM images ORDER BY row").fetchall()
    images = [hashlib.sha256(image.tobytes()).hexdigest() for image in store.image_pages.read(store.image_row)]
    masks = [record_hash(store.path / "masks.u8", row) if row >= 0 else "" for row in store.mask_row]
    found = {row[0]: (*row[1:], image, mask) for row, image, mask in zip(rows, images, masks, strict=True)}
    assert len(found) == len(store)
    return found


def leftovers(site: Site) -> list[str]:
    """Return what a finished command has not tidied up: staging folders, temporary files, records, pools."""
    with closing(sqlite3.connect(site.path / "intake" / "journal.sqlite")) as index:
        (pool,) = index.execute("SELECT value FROM meta WHERE key = 'pool'").fetchone()
        counts = dict(index.execute("SELECT kind || 's.u8', count(*) FROM items WHERE kind != 'nothing' GROUP BY kind"))
    found = [path.name for path in site.path.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    found += [path.name for path in (site.path / "intake").glob("pool-*") if path.name != f"pool-{pool}"]
    sizes = {
        path.name: path.stat().st_size // RECORD_BYTES for path in (site.path / "intake" / f"pool-{pool}").iterdir()
    }
    return found + [f"{name}: {sizes[name]} of {counts[name]}" for name in sizes if sizes[name] != counts[name]]


# ---------------------------------------------------------------------------------------------------------- fixtures
@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """60 phantoms of 30 patients, a third without a view, with masks and labels; a folder of half of them."""
    folder = tmp_path_factory.mktemp("source") / "phantoms"
    options = (PhantomDicom(), PhantomDicom(transfer_syntax="rle_lossless"), PhantomDicom(view=""))
    write_phantom_dicoms(
        folder, patients=30, images_per_patient=2, image_size=96, seed=5, options=options, with_masks=True
    )
    for patient in sorted((folder / "DICOM").iterdir())[::2]:
        shutil.copytree(patient, folder / "half" / patient.name)
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def empty(source, commands, tmp_path_factory):
    """A site without images."""
    site = Site(tmp_path_factory.mktemp("empty") / "site", source, commands)
    site.run("init", "undisturbed", "--image-size", str(SIZE))
    return site


@pytest.fixture(scope="module")
def undisturbed(empty, tmp_path_factory):
    """A site that nothing disturbed."""
    site = empty.copied(tmp_path_factory.mktemp("undisturbed") / "site")
    site.run(*site.intake())
    return site


def holds_part_of(site: Site, whole: Site) -> None:
    """Check that whatever a site holds, the undisturbed one holds just so."""
    assert journal_of(site).items() <= journal_of(whole).items()
    assert store_of(site).items() <= store_of(whole).items()


def holds_all_of(site: Site, whole: Site) -> None:
    assert journal_of(site) == journal_of(whole)
    assert store_of(site) == store_of(whole)
    assert leftovers(site) == []


def kill_intakes(empty: Site, undisturbed: Site, path: Path, *, kills: int, seed: int) -> int:
    """Kill intakes, start again when one is complete, complete the last; return how many left a part of the images."""
    rng, site, done, partial = random.Random(seed), empty.copied(path), 0, 0
    while done < kills:
        folder = rng.choice(("half", "DICOM"))
        if site.kill(rng, undisturbed.seconds, *site.intake(folder)):
            done += 1
            holds_part_of(site, undisturbed)
            partial += 0 < len(journal_of(site)) < len(journal_of(undisturbed))
        elif folder == "DICOM":
            holds_all_of(site, undisturbed)
            site = empty.copied(path)
    site.run(*site.intake())
    holds_all_of(site, undisturbed)
    return partial


# ------------------------------------------------------------------------------------------------------------- tests
def test_the_undisturbed_intake_holds_every_phantom_and_mask_once(undisturbed):
    assert len(journal_of(undisturbed)) == 60 + 30  # the images of a patient have one mask
    assert len(store_of(undisturbed)) == 40
    assert leftovers(undisturbed) == []


@pytest.mark.slow
def test_intakes_killed_at_any_moment_leave_sites_that_open_and_that_the_next_intake_completes(
    empty, undisturbed, tmp_path
):
    partial = kill_intakes(empty, undisturbed, tmp_path / "killed", kills=12, seed=0)
    assert partial > 0


def test_workers_that_hang_in_a_file_die_with_the_killed_intake(tmp_path):
    pipes = [tmp_path / name for name in ("first", "second")]
    for pipe in pipes:
        os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", HANGING, *pipes], start_new_session=True) as process:
        ends = [writing_end(pipe) for pipe in pipes]  # nothing is written: the workers wait for ever
        process.kill()
    ended = gone(process.pid)
    for end in ends:
        os.close(end)
    assert ended


def writing_end(pipe: Path) -> int:
    """Open the end of a pipe as soon as somebody reads from the other."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError):
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    raise TimeoutError


# -------------------------------------------------------------------------------------------------------------- slow
@pytest.fixture(scope="module")
def accepted(undisturbed, tmp_path_factory):
    """A copy of the undisturbed site with everything that waited accepted."""
    site = undisturbed.copied(tmp_path_factory.mktemp("accepted") / "site")
    site.run("review", "accept", "--all")
    return site


@pytest.fixture(scope="module")
def patient(source):
    return str(pydicom.dcmread(next((source / "DICOM" / "PAT00003").rglob("*.dcm"))).PatientID)


@pytest.fixture(scope="module")
def purged(accepted, patient, tmp_path_factory):
    """A copy of that with one patient purged."""
    site = accepted.copied(tmp_path_factory.mktemp("purged") / "site")
    site.run("purge", "--patient", text=patient)
    return site


def records(site: Site) -> set[str]:
    """Return the hashes of all records of pixels that lie anywhere in a site's folder."""
    found = [path for path in site.path.rglob("*.u8") if not path.is_symlink()]
    return {record_hash(path, number) for path in found for number in range(path.stat().st_size // RECORD_BYTES)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_forty_killed_intakes_leave_sites_that_open_and_that_the_next_intake_completes(empty, undisturbed, tmp_path):
    assert kill_intakes(empty, undisturbed, tmp_path / "killed", kills=40, seed=1) > 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_review_killed_while_it_accepts_is_done_or_not_and_can_be_repeated(undisturbed, accepted, tmp_path):
    rng, done = random.Random(2), 0
    while done < 20:
        site = undisturbed.copied(tmp_path / "review")
        if site.kill(rng, accepted.seconds, "review", "accept", "--all"):
            done += 1
            assert store_of(site) in (store_of(undisturbed), store_of(accepted))
            assert journal_of(site) == journal_of(accepted)
            site.run("review", "accept", "--all")
            holds_all_of(site, accepted)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_purge_that_is_killed_is_done_or_not_and_the_next_command_finishes_it(accepted, purged, patient, tmp_path):
    rng, done = random.Random(3), 0
    removed = records(accepted) - records(purged)
    assert len(removed) == 2 + 1  # two images and their mask
    while done < 20:
        site = accepted.copied(tmp_path / "purge")
        if site.kill(rng, purged.seconds, "purge", "--patient", text=patient):
            done += 1
            assert store_of(site) in (store_of(accepted), store_of(purged))
            assert journal_of(site) in (journal_of(accepted), journal_of(purged))
            site.run(*site.intake())  # the patient's files are still in the folder, labels and mask in the labels file
            if store_of(site) != store_of(purged):
                site.run("purge", "--patient", text=patient)
                site.run(*site.intake())
            holds_all_of(site, purged)
            assert not removed & records(site)
