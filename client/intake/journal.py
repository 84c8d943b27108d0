"""What intake remembers: every item it met, by pseudonyms and hashes, and where the pixels of the kept ones lie.

One SQLite file and two files of records in `<site>/intake/`, private to intake. Pixels reach the disk before the
transaction that names them; so whatever kills the process, the next start finds a state that was committed.
"""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from client.intake.records import Records
from multimix.data.decode import Geometry, Preprocessing
from multimix.data.store import IMAGES, MASKS
from multimix.errors import SiteError

if TYPE_CHECKING:
    from client.intake.examine import Examined

JOURNAL: Final = "journal.sqlite"
_SCHEMA: Final = "1"
_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (id INTEGER PRIMARY KEY, file_hash TEXT, kind TEXT NOT NULL, decision TEXT NOT NULL,
  reason TEXT NOT NULL, rules TEXT NOT NULL, uid TEXT, patient TEXT, accession TEXT, view TEXT, modality TEXT,
  syntax TEXT, content TEXT, flags TEXT, record INTEGER,
  width INTEGER, height INTEGER, scale_x REAL, scale_y REAL, offset_x INTEGER, offset_y INTEGER,
  brightness INTEGER, number TEXT);
CREATE UNIQUE INDEX one_uid ON items (kind, uid) WHERE kind != 'nothing' AND uid != '';
CREATE INDEX contents ON items (content) WHERE content IS NOT NULL;
CREATE INDEX hashes ON items (file_hash) WHERE file_hash != '';
CREATE INDEX patients ON items (patient) WHERE patient IS NOT NULL;
CREATE TABLE files (key TEXT PRIMARY KEY, item INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX item_files ON files (item);
CREATE TABLE labels (origin TEXT NOT NULL, uid TEXT, accession TEXT, patient TEXT, label TEXT NOT NULL,
  split TEXT NOT NULL, mask_key TEXT NOT NULL, mask_convention TEXT NOT NULL);
CREATE TABLE purged (tombstone TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_IMAGE: Final = "id, uid, patient, accession, view, content, flags, record, decision, reason"
_GEOMETRY: Final = "width, height, scale_x, scale_y, offset_x, offset_y, brightness"


class Image(NamedTuple):
    """One image that intake keeps: accepted, or waiting for review."""

    id: int
    uid: str
    patient: str
    accession: str
    view: str
    content: str
    flags: tuple[str, ...]
    record: int
    decision: str
    reason: str
    geometry: Geometry
    brightness: int

    def __repr__(self) -> str:
        """Hide pseudonyms."""
        return f"Image({self.id})"


class Mask(NamedTuple):
    """A lung mask; `image_uid` is "" where only a labels file says whose it is."""

    record: int
    image_uid: str
    content: str
    width: int
    height: int


class Label(NamedTuple):
    """One row of a labels file, its keys as pseudonyms ("" where absent)."""

    uid: str
    accession: str
    patient: str
    label: str
    split: str
    mask_key: str
    mask_convention: str


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the site's intake alone.

    Raises:
        SiteError: `intake_running` if another process holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SiteError(
                "intake_running", "Another command works on this site's images. Wait for it, or stop it."
            ) from None
        yield


@cache
def _reader(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True, timeout=30)


def is_decoded(path: Path, file_hash: str) -> bool:
    """Whether pixels of a file of these bytes are kept already; for workers, which only read the journal."""
    query = "SELECT 1 FROM items WHERE file_hash = ? AND (kind != 'nothing' OR reason = 'rejected')"
    return _reader(path).execute(query, (file_hash,)).fetchone() is not None


@dataclass
class Journal:
    """The open journal; use `open_journal`."""

    folder: Path
    pool: Path
    index: sqlite3.Connection
    images: Records
    masks: Records
    rules: str

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return self.folder / JOURNAL

    def met(self) -> set[str]:
        """Return the keys of all items that need not be examined again under the present rules."""
        query = """SELECT key FROM files JOIN items ON item = id
          WHERE kind != 'nothing' OR reason IN ('patient_purged', 'rejected') OR reason LIKE 'duplicate%'
          OR (rules = ? AND reason != 'decoder_crashed')"""
        return {key for (key,) in self.index.execute(query, (self.rules,))}

    def keys_of(self, reasons: Iterable[str]) -> set[str]:
        """Return the keys of items that were set aside for one of the reasons."""
        wanted = tuple(reasons)
        marks = ", ".join("?" * len(wanted))
        query = f"SELECT key FROM files JOIN items ON item = id WHERE kind = 'nothing' AND reason IN ({marks})"  # noqa: S608
        return {key for (key,) in self.index.execute(query, wanted)}

    def add(self, key: str, found: "Examined", tombstones: Sequence[str] = ()) -> str:
        """Note the outcome of an item; keep its pixels unless they are kept already. Return the reason noted.

        `tombstones` are those that its patient and its image would have, had they been purged.
        """
        self._forget(key)
        if found.reason == "unchanged":
            query = "SELECT id FROM items WHERE file_hash = ? AND (kind != 'nothing' OR reason = 'rejected')"
            known = self.index.execute(query, (found.file_hash,)).fetchone()
            self.index.execute("INSERT INTO files VALUES (?, ?)", (key, known[0]))
            return "unchanged"
        twin = self._same_mask(found)
        if twin is not None:
            self.index.execute("INSERT INTO files VALUES (?, ?)", (key, twin))
            return "duplicate_mask"
        if self._corrected(key, found, tombstones):
            return "corrected"
        reason = self._refusal(found, tombstones) if found.kind != "nothing" else found.reason
        kept = found.kind != "nothing" and not reason
        item = self._insert_kept(found) if kept else self._insert_aside(found, reason)
        self.index.execute("INSERT INTO files VALUES (?, ?)", (key, item))
        return found.reason if kept else reason

    def _corrected(self, key: str, found: "Examined", tombstones: Sequence[str]) -> bool:
        """Let a manifest correct whose a picture is, its view or its path: what it says last holds."""
        if found.modality != "picture" or found.kind != "image" or self.purged(tombstones):
            return False
        uid, patient = found.keys.uid, found.keys.patient
        query = "SELECT id, uid, patient FROM items WHERE kind = 'image' AND modality = 'picture' AND content = ?"
        row = self.index.execute(query, (found.content,)).fetchone()
        if row is None or not (row[1] == uid or (row[2] == patient and not self._names_image(row[1], uid))):
            return False
        query = "UPDATE items SET patient = ?, view = ?, file_hash = ?, uid = ? WHERE id = ?"
        self.index.execute(query, (patient, found.view, found.file_hash, uid, row[0]))
        self.index.execute("INSERT INTO files VALUES (?, ?)", (key, row[0]))
        return True

    def _names_image(self, old: str, new: str) -> bool:
        """Whether the manifest still has the old path, or another picture has the new one."""
        query = "SELECT 1 FROM labels WHERE uid = ? UNION SELECT 1 FROM items WHERE kind = 'image' AND uid = ?"
        return self.index.execute(query, (old, new)).fetchone() is not None

    def _forget(self, key: str) -> None:
        """Drop what an earlier examination of the item said; a set-aside item goes with its last file."""
        row = self.index.execute("DELETE FROM files WHERE key = ? RETURNING item", (key,)).fetchone()
        if row is not None:
            query = "DELETE FROM items WHERE id = ? AND kind = 'nothing' AND id NOT IN (SELECT item FROM files)"
            self.index.execute(query, row)

    def _same_mask(self, found: "Examined") -> int | None:
        """Return the mask that is this very one, of those that only labels join to images."""
        if found.kind != "mask" or found.keys.uid or found.geometry is None:
            return None
        query = "SELECT id FROM items WHERE kind = 'mask' AND uid = '' AND content = ? AND width = ? AND height = ?"
        row = self.index.execute(query, (found.content, *found.geometry[:2])).fetchone()
        return None if row is None else int(row[0])

    def _refusal(self, found: "Examined", tombstones: Sequence[str]) -> str:
        """Return why an image or mask is not kept beside those there are, or ""."""
        uid, patient = found.keys.uid, found.keys.patient
        if self.purged(tombstones):
            return "patient_purged"
        query = "SELECT content FROM items WHERE kind = ? AND uid = ? AND uid != ''"
        same = self.index.execute(query, (found.kind, uid)).fetchone()
        if found.kind == "mask":
            return "" if same is None else "duplicate_mask" if same[0] == found.content else "mask_conflict"
        if same is not None:
            return "duplicate_uid" if same[0] == found.content else "duplicate_uid_conflict"
        query = "SELECT patient FROM items WHERE kind = 'image' AND content = ?"
        twin = self.index.execute(query, (found.content,)).fetchone()
        if twin is None:
            return ""
        return "duplicate_pixels" if twin[0] == patient else "duplicate_pixels_other_patient"

    def purged(self, tombstones: Sequence[str]) -> bool:
        """Whether one of them is that of a purged patient or image."""
        query = "SELECT 1 FROM purged WHERE tombstone = ?"
        return any(self.index.execute(query, (each,)).fetchone() for each in tombstones)

    def _insert_kept(self, found: "Examined") -> int | None:
        if found.pixels is None or found.geometry is None:
            raise ValueError("an image without pixels")
        record = (self.images if found.kind == "image" else self.masks).append(found.pixels.tobytes())
        values = (
            *(found.file_hash, found.kind, found.decision, found.reason, self.rules, *found.keys[:3], found.view),
            *(found.modality, found.syntax, found.content, " ".join(found.flags), record, *found.geometry),
            *(round(float(found.pixels.mean())), found.keys.number),
        )
        query = f"INSERT INTO items VALUES (NULL, {', '.join('?' * len(values))})"  # noqa: S608  (placeholders)
        return self.index.execute(query, values).lastrowid

    def _insert_aside(self, found: "Examined", reason: str) -> int | None:
        query = """INSERT INTO items (file_hash, kind, decision, reason, rules, modality, syntax)
          VALUES (?, 'nothing', 'aside', ?, ?, ?, ?)"""
        values = ("", reason, self.rules, found.modality, found.syntax)
        return self.index.execute(query, values).lastrowid

    def commit(self) -> None:
        """Make everything so far durable: first the pixels, then the rows that name them."""
        self.images.sync()
        self.masks.sync()
        self.index.commit()

    def kept_images(self, *decisions: str) -> list[Image]:
        """Return the images of these decisions (all without), in the order they came."""
        wanted = decisions or ("accept", "review")
        marks = ", ".join("?" * len(wanted))
        query = (
            f"SELECT {_IMAGE}, {_GEOMETRY} FROM items WHERE kind = 'image' AND decision IN ({marks})"  # noqa: S608
            " ORDER BY record"
        )
        return [_image(row) for row in self.index.execute(query, wanted)]

    def kept_masks(self) -> dict[str, Mask]:
        """Return the masks by each key of a file that held them."""
        query = """SELECT key, record, uid, content, width, height FROM files JOIN items ON item = id
          WHERE kind = 'mask' ORDER BY record"""
        return {key: Mask(*row) for key, *row in self.index.execute(query)}

    def accept(self, ids: Iterable[int], view: str) -> None:
        """Accept images that wait; "" keeps the view that is known, or else calls it frontal."""
        query = """UPDATE items SET decision = 'accept', view = coalesce(nullif(?, ''), nullif(view, ''), 'frontal')
          WHERE kind = 'image' AND id = ?"""
        self.index.executemany(query, [(view, each) for each in ids])

    def reject(self, ids: Iterable[int]) -> None:
        """Set images aside for good: their file is known, their pixels are named no more."""
        query = """UPDATE items SET kind = 'nothing', decision = 'aside', reason = 'rejected', record = NULL,
          uid = NULL, patient = NULL, accession = NULL, content = NULL WHERE kind = 'image' AND id = ?"""
        self.index.executemany(query, [(each,) for each in ids])

    def replace_labels(self, origin: str, labels: Iterable[Label]) -> None:
        """Put these rows in the place of all earlier ones of the origin."""
        self.index.execute("DELETE FROM labels WHERE origin = ?", (origin,))
        self.index.executemany(
            "INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [(origin, *label) for label in labels]
        )

    def labels(self) -> list[Label]:
        """Return all rows of labels files, in their order."""
        query = """SELECT uid, accession, patient, label, split, mask_key, mask_convention FROM labels
          ORDER BY rowid"""
        return [Label(*row) for row in self.index.execute(query)]

    def patients_of(self, number: str) -> list[str]:
        """Return the pseudonyms of the patients whose identifier has this pseudonym, whoever issued it."""
        query = "SELECT DISTINCT patient FROM items WHERE kind = 'image' AND number = ? AND number != ''"
        return [patient for (patient,) in self.index.execute(query, (number,))]

    def shared_numbers(self) -> int:
        """Return how many patient identifiers several issuers have given."""
        query = """SELECT count(*) FROM (SELECT 1 FROM items WHERE kind = 'image' AND number != ''
          GROUP BY number HAVING count(DISTINCT patient) > 1)"""
        return int(self.index.execute(query).fetchone()[0])

    def counts(self, column: str) -> dict[str, int]:
        """Return how many items have each value of a column: reason, syntax, modality or decision."""
        if column not in {"reason", "syntax", "modality", "decision"}:
            raise ValueError(column)
        query = f"SELECT {column}, count(*) FROM items GROUP BY {column} ORDER BY 2 DESC, 1"  # noqa: S608
        return {str(value or ""): count for value, count in self.index.execute(query)}

    def meta(self, key: str) -> str:
        """Return a remembered value, "" if there is none."""
        return _meta(self.index, key)

    def remember(self, key: str, value: str) -> None:
        """Set a remembered value."""
        self.index.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = ?", (key, value, value))


def _image(row: tuple[int | float | str, ...]) -> Image:
    *plain, flags, record, decision, reason = row[:10]
    return Image(*plain, tuple(str(flags).split()), record, decision, reason, Geometry(*row[10:16]), row[16])  # type: ignore[call-arg, arg-type]


@contextmanager
def open_journal(folder: Path, preprocessing: Preprocessing, *, rules: str = "", owner: str = "") -> Iterator[Journal]:
    """Open or create the journal, alone; what is not committed when the block ends never happened.

    `owner` is a pseudonym that shows that the secret is still the one that the journal was made with.

    Raises:
        SiteError: `intake_running`; `secret_changed`.
        SiteError: `preprocessing_changed`; `journal_damaged` if pixels that it names are missing.
    """
    with locked(folder), closing(_connected(folder / JOURNAL)) as index:
        _prepare(index, preprocessing)
        _check_owner(index, owner)
        pool = folder / f"pool-{_meta(index, 'pool')}"
        for old in folder.glob("pool-*"):
            if old != pool:
                shutil.rmtree(old)  # of a purge that was interrupted before or after it was decided
        pool.mkdir(mode=0o700, exist_ok=True)
        images = _records(index, pool / IMAGES, "image", preprocessing)
        with images, _records(index, pool / MASKS, "mask", preprocessing) as masks:
            yield Journal(folder, pool, index, images, masks, rules)


def _prepare(index: sqlite3.Connection, preprocessing: Preprocessing) -> None:
    if not index.execute("SELECT 1 FROM sqlite_master").fetchone():
        start = {"schema": _SCHEMA, "preprocessing": preprocessing.version, "pool": "1"}
        values = ", ".join(f"('{key}', '{value}')" for key, value in start.items())
        index.executescript(f"BEGIN; {_TABLES} INSERT INTO meta VALUES {values}; COMMIT;")  # noqa: S608
    made = _meta(index, "preprocessing")
    if _meta(index, "schema") != _SCHEMA or made != preprocessing.version:
        raise SiteError(
            "preprocessing_changed",
            f"The images were taken in as {made}, the settings say {preprocessing.version}. "
            "Set them back, or start a new site folder.",
        )


def _check_owner(index: sqlite3.Connection, owner: str) -> None:
    known = _meta(index, "owner")
    if owner and not known:
        index.execute("INSERT INTO meta VALUES ('owner', ?)", (owner,))
        index.commit()
    elif owner != known and owner:
        raise SiteError(
            "secret_changed",
            "site.secret is not the one that the images were taken in with: every patient would become another. "
            "Restore it from its backup, or start a new site.",
        )


def _meta(index: sqlite3.Connection, key: str) -> str:
    row = index.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return "" if row is None else str(row[0])


def _records(index: sqlite3.Connection, path: Path, kind: str, preprocessing: Preprocessing) -> Records:
    count = index.execute("SELECT coalesce(max(record) + 1, 0) FROM items WHERE kind = ?", (kind,)).fetchone()[0]
    try:
        return Records(path, record_bytes=preprocessing.image_size**2, count=count)
    except ValueError:
        raise SiteError(
            "journal_damaged",
            "The site's pixels are shorter than its journal says. Restore the folder, or start a new one.",
        ) from None


def _connected(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    index = sqlite3.connect(path, timeout=30)
    index.execute("PRAGMA journal_mode = WAL")
    index.execute("PRAGMA synchronous = FULL")
    index.execute("PRAGMA secure_delete = ON")
    return index
