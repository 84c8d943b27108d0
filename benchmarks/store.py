"""How fast the decoded store serves random batches to one thread, and a large store to test memory with."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from multimix.data.decode import Geometry, Preprocessing
from multimix.data.store import Store, open_store
from multimix.data.store_writer import StoreRow, write_store

BATCH = 32
DISTINCT = 64  # different images; the file repeats them, which a memory map cannot tell


def make_large_store(path: Path, *, images: int = 100_000, image_size: int = 256) -> Store:
    """Write and open a store of noise images, every tenth with a mask; 100,000 at 256 px take 7 GB."""
    write_store(path, _rows(images, image_size), preprocessing=Preprocessing(image_size=image_size))
    return open_store(path)


def _rows(images: int, image_size: int) -> Iterator[StoreRow]:
    noise = np.random.default_rng(0).integers(0, 256, (DISTINCT, image_size, image_size), np.uint8)
    for row in range(images):
        picture = noise[row % DISTINCT]
        has_mask = row % 10 == 0
        yield StoreRow(
            image=picture,
            mask=picture >> 7 if has_mask else None,
            content_hash=f"{row:064x}",
            mask_hash=f"{row:064x}" if has_mask else "",
            patient=f"{row // 2:032x}",
            source="noise",
            site="",
            view="",
            label=("normal", "pneumonia")[row % 2],
            mask_convention="mediastinum_excluded" if has_mask else "",
            split="validation" if row % 200 < 2 else "train",
            geometry=Geometry(image_size, image_size, 1.0, 1.0, 0, 0),
        )


def store_images_per_s(*, images: int = 20_000, batches: int = 300) -> float:
    """Return images per second as float32 tensors: random batches of 32 at 256 px, one thread, cached."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = make_large_store(Path(folder) / "store", images=images)
            order = np.random.default_rng(1).integers(0, images, (batches + 10, BATCH))
            for rows in order[:10]:
                store.load_images(rows)
            start = time.perf_counter()
            for rows in order[10:]:
                store.load_images(rows)
            return batches * BATCH / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    print(f"store_images_per_s {store_images_per_s():.0f}")
