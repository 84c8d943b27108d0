"""Stores of a laboratory's images, decoded once below a cache folder and found again by what went into them."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from multimix.data.decode import Preprocessing
from multimix.data.manifest import Record
from multimix.data.store import Store, open_store
from multimix.data.store_writer import build_store
from multimix.errors import StoreError

Progress = Callable[[int, int], None]
SIMULATION_KEY: Final = b"simulation"  # pseudonyms of a laboratory's public images hide nobody


def cached_store(
    records: Sequence[Record],
    *,
    root: Path,
    cache: Path,
    preprocessing: Preprocessing,
    split_seed: int,
    progress: Progress | None = None,
) -> Store:
    """Return the store of these images, preprocessing and seed of the splits; one process builds, others wait for it.

    Images and masks are named by their paths below `root`.

    Raises:
        ManifestError, StoreError: the images or the cache cannot be used.
    """
    with locked_cache(cache):
        out = cache / _key(records, root, preprocessing, split_seed)
        for leftover in cache.glob(f".{out.name}.*"):  # of a build that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            return open_store(out)
        except StoreError:
            shutil.rmtree(out, ignore_errors=True)
        return build_store(
            records,
            root=root,
            out=out,
            preprocessing=preprocessing,
            pseudonym_key=SIMULATION_KEY,
            split_seed=split_seed,
            progress=progress,
        )


@contextmanager
def locked_cache(cache: Path) -> Iterator[None]:
    """Let one process at a time write to the cache; StoreError `cannot_write`."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = (cache / "lock").open("wb")
    except OSError as error:
        raise StoreError(
            "cannot_write", f"The cache {cache} cannot be written ({error.strerror}). Choose another with cache."
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, also by a crash
        yield


def _key(records: Sequence[Record], root: Path, preprocessing: Preprocessing, seed: int) -> str:
    """Hash the records, the sizes and times of their files, the preprocessing and the seed of the splits."""
    files = [name for record in records for name in (record.image, record.mask) if name]
    stats = [(root / name).stat() for name in files]
    stamps = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    rows = [record.model_dump() for record in records]
    digest = hashlib.sha256(json.dumps([preprocessing.version, seed, stamps, rows]).encode())
    return digest.hexdigest()[:32]
