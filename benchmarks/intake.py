"""How much an intake costs beside pure decoding, how it scales with workers, and what a second intake costs.

The files are phantoms at the matrix of a real radiograph in four encodings for the first figures, and 5,000 small
uncompressed ones for the second intake: the smaller an image, the less a first intake has to do, the lower the figure.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from client.intake.run import take_in
from client.intake.sources import folder_items
from client.settings import SiteFolder, new_site
from multimix.data.dicom_pixels import decoded
from multimix.data.phantom import default_hospitals, draw_phantom
from multimix.data.phantom_dicom import PhantomDicom, dicom_bytes, phantom_dataset

SIZE = 256
MATRIX = 1760  # of the CR images in shared/data/dicom
FILES = 80
SMALL_FILES = 5_000
ENCODINGS = ("explicit_le", "jpeg2000_lossless", "jpegls_lossless", "rle_lossless")


def write_files(folder: Path, *, count: int, side: int, encodings: tuple[str, ...]) -> None:
    """Write different phantoms of one side: a few drawn ones, each time with other noise."""
    hospital = default_hospitals(1, 0)[0]
    drawn = [draw_phantom(hospital, patient=i, seed=0, image_size=256).image for i in range(8)]
    large = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in drawn]
    random = np.random.default_rng(0)
    for number in range(count):
        options = PhantomDicom(transfer_syntax=encodings[number % len(encodings)], bits_stored=12)
        noise = random.integers(-3, 4, (side, side), np.int16)
        image = np.clip(large[number % len(large)].astype(np.int16) + noise, 0, 255).astype(np.uint8)
        dataset = phantom_dataset(image, patient_id=f"p{number}", accession=f"a{number}", seed=number, options=options)
        file = folder / f"{number % 50:02d}" / f"{number:05d}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(dicom_bytes(dataset))


def decode_and_resize(file: str) -> int:
    """Do the least that any intake must: decode, by the same decoders, and resize with Pillow."""
    array = decoded(pydicom.dcmread(file))
    small = Image.fromarray(array.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return int(np.asarray(small).sum())


def pure_s(files: list[str], workers: int) -> float:
    """Return the seconds of decoding and resizing alone, processes started included."""
    started = time.perf_counter()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.intake"])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(decode_and_resize, files, chunksize=4))
    return time.perf_counter() - started


def intake_s(source: Path, folder: Path, workers: int) -> tuple[float, SiteFolder]:
    """Return the seconds of a whole intake into a new site, and the site."""
    site = new_site(folder, "bench", image_size=SIZE)
    intake = site.settings.intake.model_copy(update={"workers": workers})
    site = SiteFolder(site.path, site.settings.model_copy(update={"intake": intake}))
    return again_s(source, site), site


def again_s(source: Path, site: SiteFolder) -> float:
    """Return the seconds of an intake into a site."""
    pseudonyms = site.pseudonyms()
    started = time.perf_counter()
    summary = take_in(site, folder_items(source, pseudonyms))
    seconds = time.perf_counter() - started
    if set(summary.outcomes) - {"stored"}:
        raise RuntimeError(f"not all was stored: {dict(summary.outcomes)}")
    return seconds


def rounds(source: Path, scratch: Path, workers: int, *, repeats: int) -> Iterator[tuple[float, float]]:
    """Yield (pure, intake) seconds, by turns."""
    files = sorted(str(path) for path in source.rglob("*.dcm"))
    for turn in range(repeats):
        pure = pure_s(files, workers)
        yield pure, intake_s(source, scratch / f"site-{workers}-{turn}", workers)[0]


def figures() -> dict[str, float]:
    """Return the ratio to pure decoding, the speedup by a second worker, and that of a second intake."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_files(scratch / "large", count=FILES, side=MATRIX, encodings=ENCODINGS)
        workers = min(4, os.cpu_count() or 1)
        pairs = list(rounds(scratch / "large", scratch, workers, repeats=2))
        alone = min(seconds for _, seconds in rounds(scratch / "large", scratch, 1, repeats=1))
        write_files(scratch / "small", count=SMALL_FILES, side=128, encodings=("explicit_le",))
        first, site = intake_s(scratch / "small", scratch / "small-site", workers)
        second = min(again_s(scratch / "small", site) for _ in range(3))
    fastest = min(seconds for _, seconds in pairs)
    return {
        "intake_over_decode_ratio": fastest / min(pure for pure, _ in pairs),
        "intake_files_per_s": FILES / fastest,
        f"intake_speedup_{workers}_workers": alone / fastest,
        "intake_second_run_speedup": first / second,
    }
