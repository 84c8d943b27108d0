"""Removing a patient, or everything, and proving it.

Pixels are not blanked in place, where training may have them mapped: the arrays are written anew without the
patient, the journal forgets every row and key, older generations go, and then everything the site still has is
searched for what was removed. A tombstone, a hash under a purpose of its own, keeps the patient from being taken in
again. What a backup, a file system's snapshot or a process that had an older generation open still holds is outside
of what this can prove.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from client.intake.generation import remove_all_but_current, write_generation
from client.intake.journal import Image, Journal, Mask
from client.intake.records import Records
from client.settings import SiteFolder
from multimix.data.pseudonyms import Pseudonyms
from multimix.data.store import IMAGES, MASKS
from multimix.data.store_writer import fsync
from multimix.errors import SiteError

PAGES: Final = ("review.png", "site.html")


@dataclass(frozen=True)
class Proof:
    """What was removed and what was then searched for it; no identifier and no pseudonym is in it."""

    images_removed: int
    masks_removed: int
    files_searched: int
    bytes_searched: int
    traces_found: int

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return self.traces_found == 0

    def as_json(self) -> str:
        """Return the figures as one line."""
        return json.dumps(asdict(self) | {"holds": self.holds})


def tombstone(pseudonyms: Pseudonyms, name: str) -> str:
    """Return what remembers that a patient or image was purged; its pseudonym does not follow from it."""
    return pseudonyms.of("purged", name)


@dataclass(frozen=True)
class Removal:
    """What of a patient was in the journal before: what the search looks for."""

    texts: tuple[bytes, ...]
    images: tuple[bytes, ...]
    masks: tuple[bytes, ...]  # without those that equal a mask of another patient
    mask_count: int


def remove_patient(journal: Journal, pseudonyms: Pseudonyms, *patients: str) -> Removal:
    """Forget a patient, who may have several pseudonyms, in one transaction.

    `finish_purge` must follow, now or at the next start.

    Raises:
        SiteError: `patient_unknown`.
    """
    images = [image for image in journal.kept_images() if image.patient in patients]
    if not images:
        raise SiteError("patient_unknown", "This site has no image of such a patient. Check the number and its issuer.")
    names = _keys_of(journal, images, frozenset(patients))
    masks = _masks_of(journal, images, names)
    gone = Removal(
        texts=tuple(sorted(text.encode() for text in names | {image.content for image in images})),
        images=tuple(journal.images.read(image.record) for image in images),
        masks=_only_of(journal, masks),
        mask_count=len(masks),
    )
    index = journal.index
    ids = [(image.id,) for image in images]
    for statement in ("DELETE FROM files WHERE item = ?", "DELETE FROM items WHERE id = ?"):
        index.executemany(statement, ids)
    for mask in masks:
        row = index.execute("SELECT id FROM items WHERE kind = 'mask' AND record = ?", (mask.record,)).fetchone()
        index.execute("DELETE FROM files WHERE item = ?", row)
        index.execute("DELETE FROM items WHERE id = ?", row)
    query = "DELETE FROM labels WHERE ? IN (uid, accession, patient)"
    index.executemany(query, [(name,) for name in sorted(names)])
    forget_rivals(journal)
    index.executemany("INSERT OR IGNORE INTO purged VALUES (?)", [(tombstone(pseudonyms, name),) for name in names])
    compact(journal)
    return gone


def forget_rivals(journal: Journal) -> None:
    """Forget what was set aside because of another image or mask, so that the next intake looks at it again."""
    rivals = "SELECT id FROM items WHERE kind = 'nothing' AND (reason LIKE 'duplicate%' OR reason = 'mask_conflict')"
    journal.index.execute(f"DELETE FROM files WHERE item IN ({rivals})")  # noqa: S608  (no values)
    journal.index.execute(f"DELETE FROM items WHERE id IN ({rivals})")  # noqa: S608  (no values)


def _keys_of(journal: Journal, images: Sequence[Image], patients: frozenset[str]) -> set[str]:
    """Return the pseudonyms that labels may name the patient by; an accession number may be another's as well."""
    others = {image.accession for image in journal.kept_images() if image.patient not in patients}
    accessions = {image.accession for image in images} - others - {""}
    return set(patients) | {image.uid for image in images} | accessions


def _masks_of(journal: Journal, images: Sequence[Image], names: set[str]) -> list[Mask]:
    """Return the masks of the images and of their rows, without those that another patient's row names too."""
    uids = {image.uid for image in images}
    keys: dict[bool, set[str]] = {True: set(), False: set()}
    for row in journal.labels():
        keys[not names.isdisjoint(row[:3])].add(row.mask_key)
    masks = journal.kept_masks()
    shared = {mask.record for key, mask in masks.items() if key in keys[False]}
    found = [mask for key, mask in masks.items() if key in keys[True] or mask.image_uid in uids]
    return list({mask.record: mask for mask in found if mask.record not in shared}.values())


def _only_of(journal: Journal, masks: Sequence[Mask]) -> tuple[bytes, ...]:
    """Return the squares of masks without those that others have too: small squares of two chests can be equal."""
    removed = {mask.record for mask in masks}
    squares = {journal.masks.read(record) for record in removed}
    for mask in journal.kept_masks().values():
        if squares and mask.record not in removed:
            squares.discard(journal.masks.read(mask.record))
    return tuple(squares)


def compact(journal: Journal) -> None:
    """Write the arrays anew with the records that the journal still names, and commit to them.

    Until the commit a crash leaves everything as it was; after it the next start finishes the work.
    """
    number = int(journal.meta("pool")) + 1
    pool = journal.folder / f"pool-{number}"
    shutil.rmtree(pool, ignore_errors=True)
    pool.mkdir(mode=0o700)
    for kind, old, name in (("image", journal.images, IMAGES), ("mask", journal.masks, MASKS)):
        moved = _copy(journal, kind, old, pool / name)
        query = "UPDATE items SET record = ? WHERE id = ?"
        journal.index.executemany(query, [(-1 - record, each) for each, record in moved])
        journal.index.execute("UPDATE items SET record = -1 - record WHERE kind = ? AND record < 0", (kind,))
    fsync(pool)
    journal.remember("pool", str(number))
    journal.remember("purge_pending", "1")
    journal.remember("published", "")
    journal.index.commit()


def _copy(journal: Journal, kind: str, old: Records, path: Path) -> list[tuple[int, int]]:
    """Copy the named records in their order; return (item, new record)."""
    rows = journal.index.execute("SELECT id, record FROM items WHERE kind = ? ORDER BY record", (kind,)).fetchall()
    with Records(path, record_bytes=old.record_bytes, count=0) as new:
        moved = [(item, new.append(old.read(record))) for item, record in rows]
        new.sync()
    return moved


def finish_purge(site: SiteFolder, journal: Journal) -> bool:
    """Remove what an earlier purge left when it was interrupted; whether there was anything to finish."""
    if journal.meta("purge_pending") != "1":
        return False
    write_generation(site, journal)
    remove_all_but_current(site.store)
    for pool in journal.folder.glob("pool-*"):
        if pool != journal.pool:
            shutil.rmtree(pool)
    journal.remember("purge_pending", "0")
    journal.commit()
    journal.index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal.index.execute("VACUUM")
    return True


def search(site: SiteFolder, gone: Removal) -> Proof:
    """Search every file of the site for pseudonyms and pixels of what was removed."""
    files = [path for path in sorted(site.path.rglob("*")) if path.is_file() and not path.is_symlink()]
    seen: set[int] = set()
    searched = found = 0
    for path in files:
        inode = path.stat().st_ino
        if inode not in seen:
            seen.add(inode)
            searched += path.stat().st_size
            found += _traces(path, gone)
    return Proof(len(gone.images), gone.mask_count, len(seen), searched, found)


def _traces(path: Path, gone: Removal) -> int:
    if path.name in {IMAGES, MASKS}:
        records = gone.images if path.name == IMAGES else gone.masks
        return _equal_records(path, records)
    data = path.read_bytes()
    return sum(text in data for text in gone.texts)


def _equal_records(path: Path, records: Iterable[bytes]) -> int:
    """Count the records of a file that equal a removed one; a mask of nothing but zeros is no trace."""
    wanted = {record for record in records if any(record)}
    if not wanted:
        return 0
    length = len(next(iter(wanted)))
    with path.open("rb") as file:
        return sum(record in wanted for record in iter(lambda: file.read(length), b""))


def remove_pages(site: SiteFolder) -> int:
    """Remove the local pages, half-written ones too: they show patients; return how many there were."""
    pages = [page for name in PAGES for page in (*site.path.glob(name), *site.path.glob(f".{name}.*"))]
    for page in pages:
        page.unlink()
    return len(pages)


def purge_everything(site: SiteFolder) -> int:
    """Remove all images, the journal, received files, pages and the secret; return how many files went.

    Raises:
        SiteError: `purge_incomplete` if something could not be removed; the secret is then still there.

    The settings stay. Without the secret no pseudonym that left in an old report can be tied to a patient again.
    """
    folders = [site.intake, site.store, site.received]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    left = sum(path.is_file() for folder in folders for path in folder.rglob("*"))
    if left:
        raise SiteError(
            "purge_incomplete", f"{left} files could not be removed. Remove them as their owner, then again."
        )
    pages = remove_pages(site)
    if site.secret.exists():  # last: with images left and no secret, nobody could say whose they are
        files.append(site.secret)
        size = site.secret.stat().st_size
        with site.secret.open("r+b") as secret:
            secret.write(os.urandom(size))
            secret.flush()
            os.fsync(secret.fileno())
        site.secret.unlink()
    fsync(site.path)
    return len(files) + pages
