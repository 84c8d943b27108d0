"""Images decoded once: a memory-mapped uint8 array, its masks and an SQLite index.

Decoding a radiograph costs far more than reading its pixels, so it happens once, when the store is built. The
store holds no path, file name, patient identifier, sex, age or licence; patients are keyed pseudonyms. It is
built beside its place and renamed into it, so that nobody opens one half-written.
"""

import errno
import hashlib
import json
import mmap
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from multimix.data.decode import Geometry, Preprocessing, geometry_of, read_image, square, square_mask
from multimix.data.manifest import Record, Split, UInt8, assign_splits, cell_error
from multimix.errors import ManifestError, StoreError

if TYPE_CHECKING:
    import torch

SCHEMA: Final = 1
COLUMNS: Final = "patient, label, mask_row, mask_convention, split, source, site, content_hash, mask_hash"
LABEL_CODES: Final = {"normal": 0, "pneumonia": 1, "other": 2, "unknown": -1}
RELEASE_BYTES: Final = 64 << 20  # mapped pages given back after this much reading: bounds resident memory
FAULT_BYTES: Final = 64 << 10  # Linux maps up to this much around a page fault

Int64 = npt.NDArray[np.int64]


class StoreRow(NamedTuple):
    """One image [size, size] with its mask (0 or 1) or None, then the columns of the index in their order."""

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
CREATE TABLE images (row INTEGER PRIMARY KEY, mask_row INTEGER UNIQUE, content_hash TEXT, mask_hash TEXT,
  patient TEXT, source TEXT, site TEXT, view TEXT, label TEXT, mask_convention TEXT, split TEXT,
  width INTEGER, height INTEGER, scale_x REAL, scale_y REAL, offset_x INTEGER, offset_y INTEGER);
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
    if not 1 <= len(pseudonym_key) <= hashlib.blake2b.MAX_KEY_SIZE:
        raise StoreError("pseudonym_key_invalid", "The pseudonym key must have 1 to 64 bytes, better 32.")

    def rows() -> Iterator[StoreRow]:
        seen: dict[str, Record] = {}
        for done, (record, split) in enumerate(zip(records, splits, strict=True), start=1):
            row = _decoded(record, split, root=root, preprocessing=preprocessing, key=pseudonym_key)
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


def _decoded(record: Record, split: Split, *, root: Path, preprocessing: Preprocessing, key: bytes) -> StoreRow:
    grey = read_image(record, root=root)
    geometry = geometry_of(preprocessing, width=grey.shape[1], height=grey.shape[0])
    size = preprocessing.image_size
    mask = square_mask(record, root=root, geometry=geometry, size=size) if record.mask else None
    identity = json.dumps(record.patient).encode()
    return StoreRow(
        image=square(grey, geometry, size),
        mask=mask,
        content_hash=_hash(preprocessing.version.encode(), str(grey.shape).encode(), grey.tobytes()),
        mask_hash="" if mask is None else _hash(mask.tobytes()),
        patient=hashlib.blake2b(identity, key=key, digest_size=16).hexdigest(),
        source=record.source,
        site=record.site,
        view=record.view,
        label=record.label,
        mask_convention=record.mask_convention if record.mask else "",
        split=split,
        geometry=geometry,
    )


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def write_store(out: Path, rows: Iterable[StoreRow], *, preprocessing: Preprocessing) -> None:
    """Write rows in their order into a new folder; on any failure nothing of it is left.

    Raises:
        StoreError: `store_exists`, `disk_full` or `cannot_write`.
    """
    with _staged(out) as folder, closing(sqlite3.connect(folder / "index.sqlite")) as index:
        index.executescript("PRAGMA journal_mode = MEMORY;" + TABLES)
        insert = f"INSERT INTO images VALUES ({', '.join('?' * 17)})"  # noqa: S608  (placeholders only)
        with (folder / "images.u8").open("wb") as images, (folder / "masks.u8").open("wb") as masks:
            count = mask_count = 0
            for row in rows:
                mask_row = None if row.mask is None else mask_count
                index.execute(insert, (count, mask_row, *row[2:-1], *row.geometry))
                images.write(row.image.tobytes())
                count += 1
                if row.mask is not None:
                    masks.write(row.mask.tobytes())
                    mask_count += 1
        meta = {"schema": SCHEMA, "preprocessing": preprocessing.version}
        meta |= {"image_size": preprocessing.image_size, "images": count, "masks": mask_count, "complete": 1}
        index.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        index.commit()


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Yield a private folder beside `out` that becomes `out` if the block succeeds and vanishes if not."""
    if out.exists():
        raise StoreError("store_exists", f"{out} is there already. Remove it or give another folder.")
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))  # mode 0700
        for name in ("images.u8", "masks.u8", "index.sqlite"):
            (staging / name).touch(mode=0o600)
        yield staging
        for path in (*staging.iterdir(), staging):
            _fsync(path)
        staging.rename(out)
        _fsync(out.parent)
    except (OSError, sqlite3.Error) as error:
        raise _write_error(out, error) from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _fsync(path: Path) -> None:
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


class _Pages:
    """A read-only file of equal records [size, size], mapped; what is read is given back in time."""

    def __init__(self, path: Path, count: int, size: int) -> None:
        """Map the file, whose length must be count x size x size bytes."""
        self._map: mmap.mmap | None = None
        if count:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.array: UInt8 = np.frombuffer(self._map or b"", np.uint8).reshape(count, size, size)
        self._unreleased_bytes = 0

    def read(self, rows: Int64) -> UInt8:
        """Return a copy [n, size, size]; all rows are asked of the disk before the first is awaited."""
        count, size, _ = self.array.shape
        if rows.size and not 0 <= rows.min() <= rows.max() < count:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a store of {count}")
        record_bytes = size * size
        for row in rows.tolist():
            start = row * record_bytes
            aligned = start - start % mmap.PAGESIZE
            if self._map is not None:
                self._map.madvise(mmap.MADV_WILLNEED, aligned, start + record_bytes - aligned)
        out = np.empty((rows.size, size, size), np.uint8)
        np.take(self.array, rows, axis=0, out=out, mode="clip")  # the default mode buffers the output
        self._unreleased_bytes += rows.size * max(record_bytes, FAULT_BYTES)
        if self._unreleased_bytes > RELEASE_BYTES:
            self.release()
        return out

    def release(self) -> None:
        """Give the mapped pages back to the system; the next read maps them again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
        self._unreleased_bytes = 0


@dataclass(frozen=True, eq=False)
class Store:
    """An open store of N images: an array per column, pixels on demand. It pickles as its path."""

    path: Path
    preprocessing: str
    image_size: int
    fingerprint: str  # of pixels, masks, labels and splits
    equal_pixels: int  # images whose decoded pixels another image has already
    patient: npt.NDArray[np.int32]  # 0-based in the order of the first image; keys the random streams
    label: npt.NDArray[np.int8]  # 0 normal, 1 pneumonia, 2 other, -1 unknown
    mask_row: npt.NDArray[np.int32]  # -1 without a mask
    convention: npt.NDArray[np.str_]
    split: npt.NDArray[np.str_]
    source: npt.NDArray[np.str_]
    site: npt.NDArray[np.str_]
    image_pages: _Pages
    mask_pages: _Pages

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.patient)

    def __reduce__(self) -> tuple[Callable[[Path], "Store"], tuple[Path]]:
        """Pickle as the path."""
        return open_store, (self.path,)

    def load_images(self, rows: Int64) -> "torch.Tensor":
        """Return float32 [n, 1, size, size] in [0, 1]."""
        import torch  # noqa: PLC0415  (only here: the index is read by processes without torch)

        return torch.from_numpy(self.image_pages.read(rows)).unsqueeze(1).to(torch.float32).div_(255)

    def load_masks(self, rows: Int64) -> "torch.Tensor":
        """Return float32 [n, 1, size, size] of 0 and 1.

        Raises:
            StoreError: `mask_absent` if one of the rows has no mask.
        """
        import torch  # noqa: PLC0415  (as above)

        mask_rows = self.mask_row[rows].astype(np.int64)
        if (mask_rows < 0).any():
            raise StoreError("mask_absent", f"Not every row asked of {self.path} has a mask. Check mask_row.")
        return torch.from_numpy(self.mask_pages.read(mask_rows)).unsqueeze(1).to(torch.float32)

    def release(self) -> None:
        """Give all mapped pages back."""
        self.image_pages.release()
        self.mask_pages.release()


def open_store(path: Path) -> Store:
    """Open a finished store read-only.

    Raises:
        StoreError: `store_missing`; `store_damaged` if incomplete or if file sizes disagree with the index.
    """
    if not (path / "index.sqlite").is_file():
        raise StoreError("store_missing", f"There is no store in {path}. Build it first.")
    try:
        uri = (path / "index.sqlite").resolve().as_uri() + "?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as index:
            meta = dict(index.execute("SELECT key, value FROM meta"))
            rows = index.execute(f"SELECT {COLUMNS} FROM images ORDER BY row").fetchall()  # noqa: S608
        return _opened(path, meta, rows)
    except (sqlite3.Error, KeyError, ValueError, OSError) as error:
        raise StoreError(
            "store_damaged", f"The store {path} is damaged ({error}). Remove the folder and build it again."
        ) from None


def _opened(path: Path, meta: dict[str, str], rows: list[tuple[str | int | None, ...]]) -> Store:
    count, mask_count, size = int(meta["images"]), int(meta["masks"]), int(meta["image_size"])
    if int(meta["schema"]) != SCHEMA or meta["complete"] != "1" or len(rows) != count:
        raise ValueError("incomplete or of another version")
    for name, records in (("images.u8", count), ("masks.u8", mask_count)):
        actual = (path / name).stat().st_size
        if actual != records * size * size:
            raise ValueError(f"{name} has {actual} bytes, its index says {records * size * size}")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS.split(", "))}
    mask_row = np.array([-1 if row is None else row for row in columns["mask_row"]], np.int32)
    if not np.array_equal(np.sort(mask_row[mask_row >= 0]), np.arange(mask_count)):
        raise ValueError("mask rows do not match the mask file")
    groups = {patient: group for group, patient in enumerate(dict.fromkeys(columns["patient"]))}
    contents = [columns[name] for name in ("content_hash", "mask_hash", "label", "split")]
    return Store(
        path=path,
        preprocessing=meta["preprocessing"],
        image_size=size,
        fingerprint=_hash(json.dumps(contents).encode()),
        equal_pixels=count - len(set(columns["content_hash"])),
        patient=_frozen([groups[patient] for patient in columns["patient"]], np.int32),
        label=_frozen([LABEL_CODES[str(label)] for label in columns["label"]], np.int8),
        mask_row=_frozen(mask_row, np.int32),
        convention=_frozen(columns["mask_convention"], np.str_),
        split=_frozen(columns["split"], np.str_),
        source=_frozen(columns["source"], np.str_),
        site=_frozen(columns["site"], np.str_),
        image_pages=_Pages(path / "images.u8", count, size),
        mask_pages=_Pages(path / "masks.u8", mask_count, size),
    )


def _frozen(values: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array
