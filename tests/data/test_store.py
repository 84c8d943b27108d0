"""The decoded store: what goes in comes out, nothing identifying is kept, nothing half-written is opened."""

import errno
import os
import pickle
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multimix.data.decode import Geometry, Preprocessing
from multimix.data.manifest import Record
from multimix.data.store import FAULT_BYTES, RELEASE_BYTES, Store, open_store
from multimix.data.store_writer import StoreRow, build_store, write_store
from multimix.errors import ManifestError, SiteError, StoreError

KEY = b"a key of this test"
SIZE = 16


def row(index: int, *, image: np.ndarray | None = None, mask: np.ndarray | None = None) -> StoreRow:
    return StoreRow(
        image=np.full((SIZE, SIZE), index % 256, np.uint8) if image is None else image,
        mask=mask,
        content_hash=str(index),
        mask_hash="" if mask is None else str(index),
        patient=f"p{index // 2}",
        source="a",
        site="",
        view="",
        label="normal",
        mask_convention="",
        split="train",
        geometry=Geometry(SIZE, SIZE, 1.0, 1.0, 0, 0),
    )


def built(folder: Path, *records: Record, out: str = "store", **changes: object) -> Store:
    arguments = {
        "root": folder,
        "out": folder / out,
        "preprocessing": Preprocessing(image_size=SIZE),
        "pseudonym_key": KEY,
        "split_seed": 0,
        **changes,
    }
    return build_store(records, **arguments)


def save(folder: Path, name: str, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(folder / name)
    return name


def test_images_come_back_between_zero_and_one(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
    store = built(tmp_path, Record(image=save(tmp_path, "a.png", pixels), patient_id="P"))
    images = store.load_images(np.array([0]))
    assert images.dtype == torch.float32
    assert images.shape == (1, 1, SIZE, SIZE)
    np.testing.assert_array_equal(images[0, 0].numpy(), pixels.astype(np.float32) / np.float32(255))


def test_padding_keeps_the_aspect_and_adds_zeros(tmp_path):
    name = save(tmp_path, "wide.png", np.full((20, 40), 200, np.uint8))
    store = built(tmp_path, Record(image=name, patient_id="P"))
    square = store.load_images(np.array([0]))[0, 0] * 255
    # 40 x 20 into 16 x 16: 16 x 8 with 4 rows of zeros above and below.
    assert square[:4].abs().max() == 0
    assert square[12:].abs().max() == 0
    torch.testing.assert_close(square[4:12], torch.full((8, 16), 200.0))


def test_stretching_fills_the_square(tmp_path):
    name = save(tmp_path, "wide.png", np.full((20, 40), 200, np.uint8))
    stretch = Preprocessing(image_size=SIZE, fit="stretch")
    store = built(tmp_path, Record(image=name, patient_id="P"), preprocessing=stretch)
    assert store.load_images(np.array([0])).min() > 0.78  # 200 / 255


def test_fine_stripes_do_not_alias_when_reduced(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))  # 1-pixel stripes, 16 times too fine
    store = built(tmp_path, Record(image=save(tmp_path, "a.png", stripes), patient_id="P"))
    inside = store.load_images(np.array([0]))[0, 0, 1:-1, 1:-1]
    assert (inside - 0.5).abs().max() < 0.02


def test_a_mask_lies_where_its_image_lies(tmp_path):
    pixels = np.zeros((48, 32), np.uint8)
    pixels[8:40, 4:20] = 255
    image = save(tmp_path, "a.png", pixels)
    mask = save(tmp_path, "m.png", pixels)
    store = built(tmp_path, Record(image=image, mask=mask, patient_id="P"))
    rows = np.array([0])
    masks = store.load_masks(rows)
    assert masks.dtype == torch.float32
    torch.testing.assert_close(masks, (store.load_images(rows) > 0.5).float(), rtol=0, atol=0)


def test_the_index_maps_predictions_back(tmp_path):
    pixels = np.zeros((48, 32), np.uint8)
    pixels[24, 16] = 255  # one bright pixel
    built(tmp_path, Record(image=save(tmp_path, "a.png", pixels), patient_id="P"))
    with sqlite3.connect(tmp_path / "store" / "index.sqlite") as index:
        found = index.execute("SELECT width, height, scale_x, scale_y, offset_x, offset_y FROM images").fetchone()
    width, height, scale_x, scale_y, offset_x, offset_y = found
    assert (width, height) == (32, 48)
    square = open_store(tmp_path / "store").image_pages.array[0]
    y, x = np.unravel_index(square.argmax(), square.shape)
    assert (int(16.5 * scale_x + offset_x), int(24.5 * scale_y + offset_y)) == (x, y)


def test_a_mask_that_vanishes_in_the_square_is_refused(tmp_path):
    speck = np.zeros((64, 64), np.uint8)
    speck[0, 0] = 255  # one sixteenth of a pixel of the square
    image, mask = save(tmp_path, "a.png", speck), save(tmp_path, "m.png", speck)
    with pytest.raises(ManifestError) as caught:
        built(tmp_path, Record(image=image, mask=mask, patient_id="P"))
    assert caught.value.reason == "mask_empty"


def test_asking_for_a_mask_that_is_not_there_is_refused(tmp_path):
    write_store(tmp_path / "s", [row(0)], preprocessing=Preprocessing(image_size=SIZE))
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path / "s").load_masks(np.array([0]))
    assert caught.value.reason == "mask_absent"


def test_mask_rows_skip_images_without_a_mask(tmp_path):
    masks = [None, np.eye(SIZE, dtype=np.uint8), None, np.ones((SIZE, SIZE), np.uint8)]
    rows = [row(i, mask=mask) for i, mask in enumerate(masks)]
    write_store(tmp_path / "s", rows, preprocessing=Preprocessing(image_size=SIZE))
    store = open_store(tmp_path / "s")
    assert store.mask_row.tolist() == [-1, 0, -1, 1]
    assert store.load_masks(np.array([3, 1])).sum(dim=(1, 2, 3)).tolist() == [SIZE * SIZE, SIZE]


def test_patients_are_numbered_in_the_order_of_their_first_image(tmp_path):
    records = []
    for i, patient in enumerate(["Z", "A", "Z", "B"]):
        name = save(tmp_path, f"{i}.png", np.full((4, 4), i, np.uint8))
        records.append(Record(image=name, patient_id=patient))
    assert built(tmp_path, *records).patient.tolist() == [0, 1, 0, 2]


def test_the_store_holds_nothing_that_identifies(tmp_path):
    secrets = {
        "patient_id": "Doe^Jane",
        "sex": "female-x",
        "age": "age-eighty-one",
        "licence": "licence-x",
        "orig_name": "upstream-name",
        "finding": "finding-x",
    }
    (tmp_path / "folder-name").mkdir()
    name = save(tmp_path, "folder-name/file-name.png", np.zeros((4, 4), np.uint8))
    built(tmp_path, Record(image=name, **secrets))
    content = b"".join(path.read_bytes() for path in (tmp_path / "store").iterdir())
    for text in [*secrets.values(), "folder-name", "file-name", str(tmp_path)]:
        assert text.encode() not in content


def test_another_key_gives_other_pseudonyms(tmp_path):
    record = Record(image=save(tmp_path, "a.png", np.zeros((4, 4), np.uint8)), patient_id="P")
    names = []
    for i, key in enumerate([b"one", b"two", b"one"]):
        built(tmp_path, record, out=f"s{i}", pseudonym_key=key)
        with sqlite3.connect(tmp_path / f"s{i}" / "index.sqlite") as index:
            names += index.execute("SELECT patient FROM images").fetchone()
    assert names[0] == names[2] != names[1]


def test_an_empty_key_is_refused(tmp_path):
    record = Record(image=save(tmp_path, "a.png", np.zeros((4, 4), np.uint8)), patient_id="P")
    with pytest.raises(SiteError) as caught:
        built(tmp_path, record, pseudonym_key=b"")
    assert caught.value.reason == "pseudonym_key_invalid"


def test_equal_pixels_of_one_patient_are_counted_not_refused(tmp_path):
    pixels = [np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)]
    records = [Record(image=save(tmp_path, f"{i}.png", each), patient_id="P") for i, each in enumerate(pixels)]
    assert built(tmp_path, *records).equal_pixels == 1


def test_equal_pixels_of_two_patients_are_refused_naming_both_rows(tmp_path):
    records = [
        Record(row=i + 2, image=save(tmp_path, f"{i}.png", np.zeros((4, 4), np.uint8)), patient_id=str(i))
        for i in range(2)
    ]
    with pytest.raises(ManifestError, match=r"row 3, .*'1\.png'.* row 2") as caught:
        built(tmp_path, *records)
    assert caught.value.reason == "image_duplicate"
    assert not (tmp_path / "store").exists()


def test_the_fingerprint_changes_with_label_split_mask_and_pixels_only(tmp_path):
    preprocessing = Preprocessing(image_size=SIZE)
    base = row(0, mask=np.ones((SIZE, SIZE), np.uint8))
    changed = [
        base._replace(label="pneumonia"),
        base._replace(split="test"),
        base._replace(mask_hash="other"),
        base._replace(content_hash="other"),
    ]
    prints = []
    for i, each in enumerate([base, base._replace(site="elsewhere"), *changed]):
        write_store(tmp_path / str(i), [each], preprocessing=preprocessing)
        prints.append(open_store(tmp_path / str(i)).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 1 + len(changed)


def test_files_are_private(tmp_path):
    write_store(tmp_path / "s", [row(0)], preprocessing=Preprocessing(image_size=SIZE))
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s").iterdir()}
    assert modes == {"images.u8": 0o600, "masks.u8": 0o600, "index.sqlite": 0o600}


@pytest.mark.parametrize(
    ("failure", "raised", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreError, "disk_full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), StoreError, "disk_full"),
        (OSError(errno.EIO, "Input/output error"), StoreError, "cannot_write"),
        (ManifestError("mask_empty", "a bad row"), ManifestError, "mask_empty"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failed_build_leaves_nothing(tmp_path, failure, raised, reason):
    def rows() -> Iterator[StoreRow]:
        yield row(0)
        raise failure

    with pytest.raises(raised) as caught:
        write_store(tmp_path / "s", rows(), preprocessing=Preprocessing(image_size=SIZE))
    assert getattr(caught.value, "reason", None) == reason
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_bytes_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # passing the limit then is an OSError, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(StoreError) as caught:
            write_store(tmp_path / "s", (row(i) for i in range(2000)), preprocessing=Preprocessing(image_size=SIZE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert caught.value.reason in {"cannot_write", "disk_full"}
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_never_overwritten(tmp_path):
    (tmp_path / "s").mkdir()
    with pytest.raises(StoreError) as caught:
        write_store(tmp_path / "s", [row(0)], preprocessing=Preprocessing(image_size=SIZE))
    assert caught.value.reason == "store_exists"


def test_a_missing_store_says_so(tmp_path):
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path / "nowhere")
    assert caught.value.reason == "store_missing"


def cut_images(folder: Path) -> None:
    os.truncate(folder / "images.u8", 100)


def remove_masks(folder: Path) -> None:
    (folder / "masks.u8").unlink()


def cut_index(folder: Path) -> None:
    os.truncate(folder / "index.sqlite", 5000)


def execute(statement: str):
    def damage(folder: Path) -> None:
        with sqlite3.connect(folder / "index.sqlite") as index:
            index.execute(statement)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        cut_images,
        remove_masks,
        cut_index,
        execute("DELETE FROM images WHERE row = 1"),
        execute("DELETE FROM meta WHERE key = 'complete'"),
        execute("UPDATE meta SET value = '99' WHERE key = 'schema'"),
        execute("UPDATE images SET mask_row = 7 WHERE row = 0"),
        execute("UPDATE images SET label = 'covid'"),
    ],
)
def test_a_damaged_store_is_not_opened(tmp_path, damage):
    rows = [row(i, mask=np.ones((SIZE, SIZE), np.uint8)) for i in range(3)]
    write_store(tmp_path / "s", rows, preprocessing=Preprocessing(image_size=SIZE))
    assert len(open_store(tmp_path / "s")) == 3
    damage(tmp_path / "s")
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path / "s")
    assert caught.value.reason == "store_damaged"


def test_rows_outside_the_store_are_refused(tmp_path):
    write_store(tmp_path / "s", [row(0), row(1)], preprocessing=Preprocessing(image_size=SIZE))
    store = open_store(tmp_path / "s")
    for outside in (-1, 2):
        with pytest.raises(IndexError):
            store.load_images(np.array([0, outside]))


def test_no_rows_give_an_empty_batch(tmp_path):
    write_store(tmp_path / "s", [row(0)], preprocessing=Preprocessing(image_size=SIZE))
    store = open_store(tmp_path / "s")
    assert store.load_images(np.empty(0, np.int64)).shape == (0, 1, SIZE, SIZE)
    assert store.load_masks(np.empty(0, np.int64)).shape == (0, 1, SIZE, SIZE)


def test_columns_and_pixels_cannot_be_changed(tmp_path):
    write_store(tmp_path / "s", [row(0)], preprocessing=Preprocessing(image_size=SIZE))
    store = open_store(tmp_path / "s")
    for array in (store.patient, store.label, store.split, store.image_pages.array):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]


def test_a_store_pickles_as_its_path(tmp_path):
    rows = [row(i) for i in range(100)]
    write_store(tmp_path / "s", rows, preprocessing=Preprocessing(image_size=SIZE))
    store = open_store(tmp_path / "s")
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000 < 100 * SIZE * SIZE
    some = np.array([99, 3])
    assert torch.equal(pickle.loads(pickled).load_images(some), store.load_images(some))


def test_pixels_survive_a_release_in_the_middle_of_reading(tmp_path):
    rows = [row(i) for i in range(300)]
    write_store(tmp_path / "s", rows, preprocessing=Preprocessing(image_size=SIZE))
    store = open_store(tmp_path / "s")
    for index in (5, 299):
        store.release()
        assert (store.load_images(np.array([index])) * 255).round().unique().tolist() == [index % 256]


def mapped_file_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile"):
            return int(line.split()[1]) * 1024
    pytest.skip("this system does not tell its resident memory")


def test_reading_through_a_store_keeps_mapped_memory_bounded(tmp_path):
    size, images = 256, 4000  # 262 MB, four times what may stay mapped
    shared = np.ones((size, size), np.uint8)
    rows = (row(i, image=shared) for i in range(images))
    write_store(tmp_path / "s", rows, preprocessing=Preprocessing(image_size=size))
    store = open_store(tmp_path / "s")
    before, most = mapped_file_bytes(), 0
    for start in range(0, images, 40):
        store.image_pages.read(np.arange(start, start + 40))
        most = max(most, mapped_file_bytes() - before)
    shutil.rmtree(tmp_path / "s")
    assert most <= RELEASE_BYTES + 40 * 2 * FAULT_BYTES
    assert images * size * size > 2 * RELEASE_BYTES


def test_progress_counts_every_image(tmp_path):
    records = [
        Record(image=save(tmp_path, f"{i}.png", np.full((4, 4), i, np.uint8)), patient_id=str(i)) for i in range(3)
    ]
    seen: list[tuple[int, int]] = []
    built(tmp_path, *records, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
