"""Writing a store: from the rows of a manifest, or row by row.

A store is built beside its place and renamed into it, so that nobody opens one half-written.
"""

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from multimix.data.decode import Geometry, Preprocessing, geometry_of, read_image, square, square_mask
from multimix.data.manifest import Record, Split, UInt8, assign_splits, cell_error
from multimix.data.pseudonyms import Pseudonyms
from multimix.data.store import IMAGES, INDEX, MASKS, SCHEMA, Store, content_hash, open_store
from multimix.errors import ManifestError, StoreError


class Entry(NamedTuple):
    """What the index says of one image; `image_row` and `mask_row` number records of the arrays."""

    image_row: int
    mask_row: int | None
    content_hash: str
    mask_hash: str
    patient: str
    source: str
    site: str
    view: str
    label: str
    mask_convention: str
    split: Split
    geometry: Geometry
    brightness: int  # mean grey level of the square


class StoreRow(NamedTuple):
    """One image [size, size] with its mask (0 or 1) or None, then what the index says of it."""

    image: UInt8
    mask: UInt8 | None
    content_hash: str
    mask_hash: str
    patient: str
    source: str
    site: str
    view: str
    label: str
    mask_convention: str
    split: Split
    geometry: Geometry


TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (row INTEGER PRIMARY KEY, image_row INTEGER UNIQUE NOT NULL, mask_row INTEGER,
  content_hash TEXT, mask_hash TEXT, patient TEXT, source TEXT, site TEXT, view TEXT, label TEXT,
  mask_convention TEXT, split TEXT,
  width INTEGER, height INTEGER, scale_x REAL, scale_y REAL, offset_x INTEGER, offset_y INTEGER,
  brightness INTEGER);
"""


def build_store(
    records: Sequence[Record],
    *,
    root: Path,
    out: Path,
    preprocessing: Preprocessing,
    pseudonym_key: bytes,
    split_seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> "Store":
    """Decode every image once and return the opened store.

    Raises:
        ManifestError: a file cannot be decoded, or a mask does not fit its image.
        StoreError: `disk_full`, `cannot_write`, `store_exists` or `pseudonym_key_invalid`.
    """
    if not records:
        raise ManifestError("manifest_empty", f"No image to store from {root}. Name at least one.")
    pseudonyms = Pseudonyms(pseudonym_key)

    def rows() -> Iterator[StoreRow]:
        seen: dict[str, Record] = {}
        for done, (record, split) in enumerate(zip(records, splits, strict=True), start=1):
            row = _decoded(record, split, root=root, preprocessing=preprocessing, pseudonyms=pseudonyms)
            first = seen.setdefault(row.content_hash, record)
            if first.patient != record.patient:
                raise cell_error(
                    "image_duplicate",
                    where=root,
                    row=record.row,
                    column="image",
                    value=record.image,
                    problem=f"has the very pixels of row {first.row}, which is another patient's",
                    remedy="Keep one of the rows, or give both the patient whose image it is.",
                )
            yield row
            if progress:
                progress(done, len(records))

    splits = assign_splits(records, seed=split_seed)
    write_store(out, rows(), preprocessing=preprocessing)
    return open_store(out)


def _decoded(
    record: Record, split: Split, *, root: Path, preprocessing: Preprocessing, pseudonyms: Pseudonyms
) -> StoreRow:
    grey = read_image(record, root=root)
    geometry = geometry_of(preprocessing, width=grey.shape[1], height=grey.shape[0])
    size = preprocessing.image_size
    mask = square_mask(record, root=root, geometry=geometry, size=size) if record.mask else None
    return StoreRow(
        image=square(grey, geometry, size),
        mask=mask,
        content_hash=content_hash(preprocessing.version.encode(), str(grey.shape).encode(), grey.tobytes()),
        mask_hash="" if mask is None else content_hash(mask.tobytes()),
        patient=pseudonyms.of("patient", *record.patient),
        source=record.source,
        site=record.site,
        view=record.view,
        label=record.label,
        mask_convention=record.mask_convention if record.mask else "",
        split=split,
        geometry=geometry,
    )


def write_store(out: Path, rows: Iterable[StoreRow], *, preprocessing: Preprocessing) -> None:
    """Write rows in their order into a new folder; on any failure nothing of it is left.

    Raises:
        StoreError: `store_exists`, `disk_full` or `cannot_write`.
    """

    def entries() -> Iterator[Entry]:
        mask_count = 0
        for count, row in enumerate(rows):
            yield Entry(count, None if row.mask is None else mask_count, *row[2:], round(float(row.image.mean())))
            images.write(row.image.tobytes())
            if row.mask is not None:
                masks.write(row.mask.tobytes())
                mask_count += 1

    with staged(out) as folder, private_file(folder / IMAGES) as images, private_file(folder / MASKS) as masks:
        write_index(folder / INDEX, entries(), preprocessing=preprocessing)


def write_index(path: Path, entries: Iterable[Entry], *, preprocessing: Preprocessing) -> None:
    """Write the index of the records that the entries name."""
    path.touch(mode=0o600)
    with closing(sqlite3.connect(path)) as index:
        index.executescript("PRAGMA journal_mode = MEMORY;" + TABLES)
        insert = f"INSERT INTO images VALUES ({', '.join('?' * 19)})"  # noqa: S608  (placeholders only)
        count = image_records = mask_records = 0
        for entry in entries:
            index.execute(insert, (count, *entry[:-2], *entry.geometry, entry.brightness))
            count += 1
            image_records = max(image_records, entry.image_row + 1)
            mask_records = max(mask_records, -1 if entry.mask_row is None else entry.mask_row + 1)
        meta = {"schema": SCHEMA, "preprocessing": preprocessing.version, "image_size": preprocessing.image_size}
        meta |= {"images": count, "image_records": image_records, "mask_records": mask_records, "complete": 1}
        index.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        index.commit()


def private_file(path: Path) -> BinaryIO:
    """Open a new file that only this user can read, for writing."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield a private folder beside `out` that becomes `out` if the block succeeds and vanishes if not."""
    if out.exists():
        raise StoreError("store_exists", f"{out} is there already. Remove it or give another folder.")
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))  # mode 0700
        yield staging
        for path in (*staging.iterdir(), staging):
            fsync(path)
        staging.rename(out)
        fsync(out.parent)
    except (OSError, sqlite3.Error) as error:
        raise _write_error(out, error) from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(out: Path, error: OSError | sqlite3.Error) -> StoreError:
    if isinstance(error, sqlite3.Error):
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    else:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    remedy = "Free space" if full else "Check that the folder above is writable"
    message = f"Cannot write {out} ({error}); nothing was kept. {remedy} and try again."
    return StoreError("disk_full" if full else "cannot_write", message)
