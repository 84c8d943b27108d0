"""An intake that is killed at any moment leaves a site that opens, and the next one completes it as if nothing was.

The command runs in a process group of its own, which SIGKILL ends: at moments drawn from a seed over the whole length of an
undisturbed run. Outcomes are committed every few files instead of every 64, so that kills meet many states.
"""

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pydicom
import pytest

from multimix.data.phantom_dicom import PhantomDicom, write_phantom_dicoms
from multimix.data.store import CURRENT, open_store

SIZE = 32
RECORD_BYTES = SIZE * SIZE
COMMAND = "import client.intake.run as run; run.COMMIT_ITEMS = 7; from client.cli import app; app()"
FEW_SECONDS = 5.0
HANGING = """
import sys
from pathlib import Path
from client.intake.examine import Item, Rules
from client.intake.workers import Limits, Workers
from multimix.data.decode import Preprocessing
with Workers(Rules(secret=b"k" * 32, preprocessing=Preprocessing(32)), Limits(workers=2)) as workers:
    list(workers.examined(Item(str(i), "dicom", Path(sys.argv[i])) for i in (1, 2)))
"""


# ------------------------------------------------------------------------------------------------------ the command
class Site:
    """A site folder and the commands on it."""

    def __init__(self, path: Path, source: Path):
        self.path, self.source = path, source

    def start(self, *command: str, stdin: bytes = b"") -> subprocess.Popen:
        """Start a command in a session, and so a process group, of its own."""
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *command, "--site", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        process.stdin.write(stdin)
        process.stdin.close()
        return process

    def run(self, *command: str, stdin: bytes = b"") -> None:
        with self.start(*command, stdin=stdin) as process:
            words = process.stderr.read().decode()
        assert process.returncode == 0, words

    def intake(self) -> tuple[str, ...]:
        return ("intake", str(self.source / "DICOM"), "--labels", str(self.source / "labels.csv"))

    def killed(self, after_s: float, *command: str, stdin: bytes = b"", group: bool = True) -> bool:
        """Kill a command after a while; whether it was still running."""
        with self.start(*command, stdin=stdin) as process:
            try:
                process.wait(after_s)
            except subprocess.TimeoutExpired:
                (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
                process.wait()
        assert gone(process.pid)
        return process.returncode == -signal.SIGKILL


def members(session: int) -> list[str]:
    """Return the processes of a session, zombies apart; the kernel shows it of processes that hide all else."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
            found += [path.parent.name] if its == str(session) and state != "Z" else []
    return found


def gone(session: int) -> bool:
    """Wait a few seconds for the last process of a session to end; whether it did."""
    deadline = time.monotonic() + FEW_SECONDS
    while members(session) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not members(session)


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
    sizes = {path.name: path.stat().st_size // RECORD_BYTES for path in (site.path / "intake" / f"pool-{pool}").iterdir()}
    return found + [f"{name}: {sizes[name]} of {counts[name]}" for name in sizes if sizes[name] != counts[name]]


# ---------------------------------------------------------------------------------------------------------- fixtures
@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """60 phantoms of 30 patients, a third without a view, with masks and labels; a folder of half of them."""
    folder = tmp_path_factory.mktemp("source") / "phantoms"
    options = (PhantomDicom(), PhantomDicom(transfer_syntax="rle_lossless"), PhantomDicom(view=""))
    write_phantom_dicoms(folder, patients=30, images_per_patient=2, image_size=96, seed=5, options=options, with_masks=True)
    for patient in sorted((folder / "DICOM").iterdir())[::2]:
        shutil.copytree(patient, folder / "half" / patient.name)
    return folder


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """A site that nothing disturbed, and the seconds its intake took."""
    site = Site(tmp_path_factory.mktemp("undisturbed") / "site", source)
    subprocess.run([sys.executable, "-c", COMMAND, "init", "undisturbed", "--site", site.path, "--image-size", str(SIZE)], check=True)
    site.run("review")  # once for the cache of compiled modules
    empty = site.path.with_name("empty")
    shutil.copytree(site.path, empty)
    started = time.monotonic()
    site.run(*site.intake())
    site.seconds, site.empty = time.monotonic() - started, empty
    return site


def fresh(undisturbed: Site, path: Path) -> Site:
    """Return an empty site with the same secret, whose pseudonyms and hashes are therefore the same."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(undisturbed.empty, path)
    return Site(path, undisturbed.source)


def holds_part_of(site: Site, whole: Site) -> None:
    """Check that whatever a site holds, the undisturbed one holds just so."""
    assert journal_of(site).items() <= journal_of(whole).items()
    assert store_of(site).items() <= store_of(whole).items()


def holds_all_of(site: Site, whole: Site) -> None:
    assert journal_of(site) == journal_of(whole)
    assert store_of(site) == store_of(whole)
    assert leftovers(site) == []


def half(site: Site) -> Sequence[str]:
    return ("intake", str(site.source / "half"), *site.intake()[2:])


def kill_intakes(undisturbed: Site, path: Path, *, kills: int, seed: int) -> int:
    """Kill intakes, complete each that got through, and the last one; return how many commits survived a kill."""
    rng, site, done, partial = random.Random(seed), fresh(undisturbed, path), 0, 0
    while done < kills:
        command = rng.choice((half(site), site.intake()))
        if site.killed(rng.triangular(0.05, 1.1 * undisturbed.seconds, undisturbed.seconds), *command, group=rng.random() < 0.7):
            done += 1
            holds_part_of(site, undisturbed)
            partial += 0 < len(journal_of(site)) < len(journal_of(undisturbed))
        elif len(journal_of(site)) == len(journal_of(undisturbed)):
            holds_all_of(site, undisturbed)
            site = fresh(undisturbed, path)
    site.run(*site.intake())
    holds_all_of(site, undisturbed)
    return partial


# ------------------------------------------------------------------------------------------------------------- tests
def test_the_undisturbed_intake_holds_every_phantom_and_mask_once(undisturbed):
    assert len(journal_of(undisturbed)) == 60 + 30  # the images of a patient have one mask
    assert len(store_of(undisturbed)) == 40
    assert leftovers(undisturbed) == []


def test_intakes_killed_at_any_moment_leave_sites_that_open_and_that_the_next_intake_completes(undisturbed, tmp_path):
    partial = kill_intakes(undisturbed, tmp_path / "killed", kills=12, seed=0)
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
    """A copy of the undisturbed site with everything that waited accepted, and the seconds that took."""
    site = copy(undisturbed, tmp_path_factory.mktemp("accepted") / "site")
    started = time.monotonic()
    site.run("review", "accept", "--all")
    site.seconds = time.monotonic() - started
    return site


@pytest.fixture(scope="module")
def purged(accepted, tmp_path_factory):
    """A copy of that with one patient purged, and the seconds that took."""
    site = copy(accepted, tmp_path_factory.mktemp("purged") / "site")
    started = time.monotonic()
    site.run("purge", "--patient", stdin=a_patient(site.source))
    site.seconds = time.monotonic() - started
    return site


def copy(site: Site, path: Path) -> Site:
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(site.path, path, symlinks=True)
    return Site(path, site.source)


def a_patient(source: Path) -> bytes:
    return str(pydicom.dcmread(next((source / "DICOM" / "PAT00003").rglob("*.dcm"))).PatientID).encode()


def records(site: Site) -> set[str]:
    """Return the hashes of all records of pixels that lie anywhere in a site's folder."""
    found = [path for path in site.path.rglob("*.u8") if not path.is_symlink()]
    return {record_hash(path, number) for path in found for number in range(path.stat().st_size // RECORD_BYTES)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_forty_killed_intakes_leave_sites_that_open_and_that_the_next_intake_completes(undisturbed, tmp_path):
    assert kill_intakes(undisturbed, tmp_path / "killed", kills=40, seed=1) > 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_review_killed_while_it_accepts_is_done_or_not_and_can_be_repeated(undisturbed, accepted, tmp_path):
    rng, done = random.Random(2), 0
    while done < 10:
        site = copy(undisturbed, tmp_path / "review")
        after_s = rng.triangular(0.05, 1.1 * accepted.seconds, accepted.seconds)
        if site.killed(after_s, "review", "accept", "--all", group=rng.random() < 0.7):
            done += 1
            assert store_of(site) in (store_of(undisturbed), store_of(accepted))
            assert journal_of(site) == journal_of(accepted)
            site.run("review", "accept", "--all")
            holds_all_of(site, accepted)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_purge_that_is_killed_is_done_or_not_and_the_next_command_finishes_it(accepted, purged, tmp_path):
    rng, done = random.Random(3), 0
    gone_pixels = records(accepted) - records(purged)
    assert len(gone_pixels) == 2 + 1
    while done < 10:
        site = copy(accepted, tmp_path / "purge")
        after_s = rng.triangular(0.05, 1.1 * purged.seconds, purged.seconds)
        patient = a_patient(site.source)
        if site.killed(after_s, "purge", "--patient", stdin=patient, group=rng.random() < 0.7):
            done += 1
            assert store_of(site) in (store_of(accepted), store_of(purged))
            assert journal_of(site) in (journal_of(accepted), journal_of(purged))
            site.run(*site.intake())
            if store_of(site) != store_of(purged):
                site.run("purge", "--patient", stdin=patient)
            holds_all_of(site, purged)
            site.run(*site.intake())  # its files are still in the folder, its labels and mask in the labels file
            holds_all_of(site, purged)
            assert not gone_pixels & records(site)
