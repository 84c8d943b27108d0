"""Images decoded once: a memory-mapped uint8 array, its masks and an SQLite index.

Decoding a radiograph costs far more than reading its pixels, so it happens once, when the store is built
(`multimix.data.store_writer`) or when a hospital takes images in. The store holds no path, file name, patient
identifier, sex, age or licence; patients are keyed pseudonyms.

`image_row` and `mask_row` number the records of the two arrays. Several generations of an index can share the
arrays: records are only ever appended, and an index names those it means.
"""

import hashlib
import json
import mmap
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from multimix.data.manifest import UInt8
from multimix.errors import StoreError

if TYPE_CHECKING:
    import torch

SCHEMA: Final = 2
IMAGES: Final = "images.u8"
MASKS: Final = "masks.u8"
INDEX: Final = "index.sqlite"
CURRENT: Final = "current"  # names the newest of several generations
COLUMNS: Final = (
    "image_row, patient, label, mask_row, mask_convention, split, source, site, view, content_hash, mask_hash, "
    "width, height, brightness"
)
LABEL_CODES: Final = {"normal": 0, "pneumonia": 1, "other": 2, "unknown": -1}
RELEASE_BYTES: Final = 64 << 20  # mapped pages given back after this much reading: bounds resident memory
FAULT_BYTES: Final = 64 << 10  # Linux maps up to this much around a page fault

Int64 = npt.NDArray[np.int64]


class _Pages:
    """A read-only file of equal records [size, size], mapped; what is read is given back in time."""

    def __init__(self, path: Path, count: int, size: int) -> None:
        """Map the first `count` records of the file."""
        self._map: mmap.mmap | None = None
        if count:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), count * size * size, access=mmap.ACCESS_READ)
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
    image_row: npt.NDArray[np.int64]  # record of the image array
    patient: npt.NDArray[np.int32]  # 0-based in the order of the first image; keys the random streams
    label: npt.NDArray[np.int8]  # 0 normal, 1 pneumonia, 2 other, -1 unknown
    mask_row: npt.NDArray[np.int32]  # -1 without a mask
    convention: npt.NDArray[np.str_]
    split: npt.NDArray[np.str_]
    source: npt.NDArray[np.str_]
    site: npt.NDArray[np.str_]
    view: npt.NDArray[np.str_]
    longest_side: npt.NDArray[np.int32]  # pixels of the original matrix
    brightness: npt.NDArray[np.uint8]  # mean grey level of the square
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

        if rows.size and rows.min() < 0:
            raise IndexError(f"row {rows.min()} of a store of {len(self)}")
        return torch.from_numpy(self.image_pages.read(self.image_row[rows])).unsqueeze(1).to(torch.float32).div_(255)

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
    """Open a finished store read-only; of a folder with generations the current one.

    Raises:
        StoreError: `store_missing`; `store_damaged` if incomplete or if file sizes disagree with the index.
    """
    if (path / CURRENT).is_symlink():
        path = (path / CURRENT).resolve()
    if not (path / INDEX).is_file():
        raise StoreError("store_missing", f"There is no store in {path}. Build it first.")
    try:
        uri = (path / INDEX).resolve().as_uri() + "?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as index:
            meta = dict(index.execute("SELECT key, value FROM meta"))
            rows = index.execute(f"SELECT {COLUMNS} FROM images ORDER BY row").fetchall()  # noqa: S608
        return _opened(path, meta, rows)
    except (sqlite3.Error, KeyError, ValueError, OSError) as error:
        raise StoreError(
            "store_damaged", f"The store {path} is damaged ({error}). Remove the folder and build it again."
        ) from None


def _opened(path: Path, meta: dict[str, str], rows: list[tuple[str | int | None, ...]]) -> Store:
    records = (int(meta["image_records"]), int(meta["mask_records"]))
    size = int(meta["image_size"])
    if int(meta["schema"]) != SCHEMA or meta["complete"] != "1" or len(rows) != int(meta["images"]):
        raise ValueError("incomplete or of another version")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS.split(", "))}
    image_row = _frozen(columns["image_row"], np.int64)
    mask_row = _frozen([-1 if row is None else row for row in columns["mask_row"]], np.int32)
    masks = np.unique(mask_row[mask_row >= 0])  # images can share one
    for name, count, used in ((IMAGES, records[0], image_row), (MASKS, records[1], masks)):
        _check_records(path / name, count * size * size, used, count)
    sides = [
        max(int(width or 0), int(height or 0))
        for width, height in zip(columns["width"], columns["height"], strict=True)
    ]
    groups = {patient: group for group, patient in enumerate(dict.fromkeys(columns["patient"]))}
    contents = [columns[name] for name in ("content_hash", "mask_hash", "label", "split")]
    return Store(
        path=path,
        preprocessing=meta["preprocessing"],
        image_size=size,
        fingerprint=content_hash(json.dumps(contents).encode()),
        equal_pixels=len(rows) - len(set(columns["content_hash"])),
        image_row=image_row,
        patient=_frozen([groups[patient] for patient in columns["patient"]], np.int32),
        label=_frozen([LABEL_CODES[str(label)] for label in columns["label"]], np.int8),
        mask_row=mask_row,
        convention=_frozen(columns["mask_convention"], np.str_),
        split=_frozen(columns["split"], np.str_),
        source=_frozen(columns["source"], np.str_),
        site=_frozen(columns["site"], np.str_),
        view=_frozen(columns["view"], np.str_),
        longest_side=_frozen(sides, np.int32),
        brightness=_frozen(columns["brightness"], np.uint8),
        image_pages=_Pages(path / IMAGES, records[0], size),
        mask_pages=_Pages(path / MASKS, records[1], size),
    )


def _check_records(file: Path, needed_bytes: int, used: npt.NDArray[Any], count: int) -> None:
    if file.stat().st_size < needed_bytes:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, its index says {needed_bytes}")
    if used.size and (used.min() < 0 or used.max() >= count or len(np.unique(used)) != used.size):
        raise ValueError(f"the rows of {file.name} do not match its index")


def content_hash(*parts: bytes) -> str:
    """Return the SHA-256 of the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _frozen(values: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array
