"""Intake of folders, labels and manifests as a whole: everything once, and the second time nothing at all."""

import csv
import os
import shutil

import numpy as np
import pydicom
import pytest
from intake_sites import (
    HEIGHT,
    SIZE,
    WIDTH,
    dataset,
    found_image,
    journal_of,
    make_site,
    picture,
    pseudonyms_of,
    store_of,
    take,
    write_dicom,
)
from PIL import Image

from client.intake import run
from client.intake.examine import Item
from client.intake.generation import generations
from client.intake.run import take_in
from client.intake.sources import folder_items
from client.intake.workers import Workers
from client.settings import SiteFolder
from multimix.data.decode import Preprocessing
from multimix.data.manifest import read_manifest
from multimix.data.phantom_dicom import dicom_bytes
from multimix.data.store_writer import build_store
from multimix.errors import SiteError
from tests.dicom_seg import lung_segmentation


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path / "site")


@pytest.fixture
def folder(tmp_path):
    """Two patients with two images each, a lateral view and a text file, at different depths."""
    base = tmp_path / "export"
    for n in range(4):
        write_dicom(base / f"patient{n // 2}" / f"series{n}" / "IM1.dcm", n, patient=f"P{n // 2}", accession=f"A{n}")
    write_dicom(base / "lateral.dcm", 9, patient="P0", view="LL")
    (base / "readme.txt").write_text("not a radiograph")
    return base


FIRST = {"stored": 4, "lateral_view": 1, "not_dicom": 1}


class NoWorkers(Workers):
    """Workers that must not be needed."""

    def examined(self, items):
        for item in items:
            raise AssertionError(f"{item} is examined")
        return iter(())


def without_workers(site, *what, **how):
    """Take in where nothing may be examined: not one file is opened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Workers", NoWorkers)
        return take(site, *what, **how)


def test_a_folder_of_any_depth_is_taken_in_and_a_second_time_nothing_is_examined(site, folder):
    first = take(site, folder)
    assert first.outcomes == FIRST
    assert (first.unchanged, first.holdings.images, first.holdings.patients) == (0, 4, 2)
    again = without_workers(site, folder)
    assert (again.outcomes, again.unchanged) == ({}, 6)
    assert again.holdings == first.holdings
    assert generations(site.store) == [1]


def test_a_file_that_is_examined_where_none_may_be_is_noticed(site, folder):
    with pytest.raises(AssertionError):
        without_workers(site, folder)


def test_moved_copied_and_touched_files_are_opened_but_neither_decoded_nor_stored_again(site, folder):
    first = take(site, folder)
    (folder / "patient0").rename(folder / "renamed")
    shutil.copytree(folder / "patient1", folder / "copy")
    os.utime(folder / "patient1" / "series2" / "IM1.dcm", ns=(1, 1))
    again = take(site, folder)
    assert again.outcomes == {}
    assert again.unchanged == 6 + 2  # the copies are two files more
    assert again.holdings == first.holdings
    with journal_of(site) as journal:
        assert journal.images.count == 4
    assert without_workers(site, folder).unchanged == 8


def test_new_files_alone_are_examined(site, folder):
    take(site, folder)
    write_dicom(folder / "new.dcm", 20, patient="P7")
    again = take(site, folder)
    assert (again.outcomes, again.unchanged) == ({"stored": 1}, 6)
    assert again.holdings.patients == 3


def test_a_missing_patient_identifier_makes_a_group_of_one(site, tmp_path):
    for n in range(3):
        write_dicom(tmp_path / "export" / f"{n}.dcm", n, patient="", accession="A1")
    holdings = take(site, tmp_path / "export").holdings
    assert (holdings.images, holdings.patients) == (3, 3)


def test_the_same_number_from_two_issuers_is_two_patients(site, tmp_path):
    for n, issuer in enumerate(("H1", "H2", "H2")):
        write_dicom(tmp_path / "export" / f"{n}.dcm", n, patient="P1", issuer=issuer)
    assert take(site, tmp_path / "export").holdings.patients == 2


def test_the_option_for_a_missing_preamble_examines_again_only_what_was_set_aside(site, tmp_path):
    export = tmp_path / "export"
    write_dicom(export / "1.dcm", 1)
    write_dicom(export / "2.dcm", 2, preamble=False, transfer_syntax="implicit_le")
    assert take(site, export).outcomes == {"stored": 1, "no_preamble": 1}
    again = take(site, export, without_preamble=True)
    assert (again.outcomes, again.unchanged) == ({"stored": 1}, 1)
    assert without_workers(site, export).unchanged == 2


def test_a_folder_that_vanishes_meanwhile_is_counted_and_stops_nothing(site, folder):
    (folder / "a" / "b").mkdir(parents=True)
    items = folder_items(folder, pseudonyms_of(site))
    first = next(items)
    shutil.rmtree(folder / "a")
    found = [first, *items]
    assert len(found) == 6 + 1
    with pytest.raises(OSError, match="a"):
        next(item for item in found if item.content == folder / "a").content.open("rb")


def test_what_could_not_be_read_is_tried_again_and_is_not_thrown_away(site, tmp_path):
    file = tmp_path / "spool.dcm"
    removed = []
    items = [Item("k", "dicom", file)]
    assert take_in(site, items, after=removed.append).outcomes == {"file_unreadable": 1}
    assert removed == []
    write_dicom(file, 1)
    assert take_in(site, items, after=removed.append).outcomes == {"stored": 1}
    assert removed == items


def test_an_item_that_comes_twice_is_examined_once_and_released_once(site, tmp_path):
    released = []
    item = Item("k", "dicom", write_dicom(tmp_path / "1.dcm", 1))
    summary = take_in(site, [item, item], after=released.append)
    assert (summary.outcomes, summary.unchanged, released) == ({"stored": 1}, 1, [item])


def test_an_instance_that_the_archive_does_not_give_is_passed_over_and_asked_for_again(site):
    def missing():
        raise SiteError("instance_missing", "-")

    def there():
        return dicom_bytes(dataset(1))

    assert take_in(site, [Item("k", "dicom", missing)]).outcomes == {"retrieval_failed": 1}
    assert take_in(site, [Item("k", "dicom", there)]).outcomes == {"stored": 1}
    assert take_in(site, [Item("k", "dicom", missing)]).unchanged == 1


def test_settings_of_another_size_are_refused_before_anything_is_examined(site, folder):
    take(site, folder)
    other = SiteFolder(site.path, site.settings.model_copy(update={"image_size": 2 * SIZE}))
    with pytest.raises(SiteError) as refused:
        take(other, folder)
    assert refused.value.reason == "preprocessing_changed"


def test_two_intakes_at_once_are_one_too_many(site, folder):
    with journal_of(site), pytest.raises(SiteError) as refused:
        take(site, folder)
    assert refused.value.reason == "intake_running"


# --- labels and masks


def write_csv(file, header, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([header.split(","), *rows])
    return file


def write_mask(file, *, height=HEIGHT, width=WIDTH, value=255, left=18):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, left:] = value
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(file)
    return mask > 0


def test_labels_and_masks_join_and_are_corrected_later_without_decoding(site, folder, tmp_path):
    lung = write_mask(tmp_path / "labels" / "m.png")
    labels = write_csv(tmp_path / "labels" / "l.csv", "accession,label,mask", ("A0", "normal", "m.png"))
    first = take(site, folder, labels=labels)
    assert first.outcomes == {**FIRST, "stored": 4 + 1}
    assert (first.holdings.labelled, first.holdings.masked, first.holdings.problems) == (1, 1, {})
    store = store_of(site)
    (row,) = np.flatnonzero(store.mask_row >= 0)
    assert store.label[row] == 0
    mask = store.mask_pages.read(store.mask_row[[row]].astype(np.int64))[0]
    assert mask.mean() == pytest.approx(lung.mean() * WIDTH / HEIGHT, abs=2 / SIZE)  # as wide as the square is high
    write_csv(labels, "accession,label,mask", ("A0", "pneumonia", "m.png"), ("A1", "normal", ""))
    again = without_workers(site, labels=labels)
    assert again.outcomes == {}
    assert sorted(store_of(site).label.tolist()) == [-1, -1, 0, 1]
    assert again.holdings.masked == 1


def test_labels_can_come_before_their_images(site, folder, tmp_path):
    labels = write_csv(tmp_path / "l.csv", "patient_id,label", ("P0", "normal"))
    assert take(site, labels=labels).holdings.problems == {"labels_without_image": 1}
    assert take(site, folder).holdings.labelled == 2


def test_a_segmentation_in_the_folder_or_in_the_labels_file_gives_the_same_mask(site, tmp_path):
    image = dataset(1, patient="P1")
    lung = np.zeros((HEIGHT, WIDTH), np.bool_)
    lung[24:72, 12:60] = True
    seg = dicom_bytes(lung_segmentation(image, lung, segments="left_right"))
    masks = []
    for place, name in (("a", "export/seg.dcm"), ("b", "labels/seg.dcm")):
        base = tmp_path / place
        write_dicom(base / "export" / "1.dcm", 1)
        (base / "labels").mkdir()
        (base / name).write_bytes(seg)
        rows = [("1.2.3.1", "seg.dcm")] if place == "b" else [("1.2.3.1", "")]
        labels = write_csv(
            base / "labels" / "l.csv", "sop_instance_uid,mask,label", *((*row, "normal") for row in rows)
        )
        own = make_site(base / "site")
        holdings = take(own, base / "export", labels=labels).holdings
        assert (holdings.masked, holdings.labelled, holdings.problems) == (1, 1, {})
        masks.append(store_of(own).load_masks(np.array([0])).numpy())
    assert (masks[0] == masks[1]).all()
    assert masks[0].mean() == pytest.approx(lung.mean() * WIDTH / HEIGHT)


# --- a manifest


@pytest.fixture
def manifest(tmp_path):
    """Six pictures of three patients with labels, splits and two masks, and what a manifest says of them."""
    base = tmp_path / "pictures"
    rows = []
    for n in range(6):
        name = f"images/{n}.{'jpg' if n % 2 else 'png'}"
        (base / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(n)).save(base / name)
        mask = f"masks/{n}.png" if n < 2 else ""
        if mask:
            write_mask(base / mask, value=1 if n else 255, left=10 + 20 * n)
        split = ("train", "validation", "test")[n // 2]
        rows.append((name, f"P{n // 2}", mask, ("normal", "pneumonia", "other")[n % 3], split, "PA"))
    return write_csv(base / "manifest.csv", "image,patient_id,mask,label,split,view", *rows)


def described(store):
    """Return what a store says of each image, by its pixels."""
    images = store.image_pages.read(store.image_row)
    said = {}
    for n, image in enumerate(images):
        row = store.mask_row[n]
        mask = store.mask_pages.read(np.array([row]))[0].tobytes() if row >= 0 else b""
        said[image.tobytes()] = (store.label[n], mask, store.convention[n], store.split[n], store.view[n])
    return said


def test_a_manifest_gives_the_images_that_build_store_gives(site, manifest, tmp_path):
    summary = take(site, manifest)
    assert summary.outcomes == {"stored": 8}
    assert (summary.holdings.images, summary.holdings.patients, summary.holdings.masked) == (6, 3, 2)
    built = build_store(
        read_manifest(manifest),
        root=manifest.parent,
        out=tmp_path / "built",
        preprocessing=Preprocessing(SIZE),
        pseudonym_key=b"k",
        split_seed=0,
    )
    assert described(store_of(site)) == described(built)
    assert without_workers(site, manifest).unchanged == 8


def test_a_damaged_picture_is_set_aside_and_the_others_are_stored(site, manifest):
    (manifest.parent / "images" / "0.png").write_bytes(b"not a picture")
    summary = take(site, manifest)
    assert summary.outcomes == {"stored": 7, "image_unreadable": 1}
    assert summary.holdings.problems == {"labels_without_image": 1}


def test_labels_that_put_a_patient_into_two_splits_stop_neither_intake_nor_purge(site, tmp_path):
    from client.intake.purge import remove_patient

    with journal_of(site) as journal:
        for n, patient in enumerate(("P1", "P1", "P2")):
            journal.add(f"{n}", found_image(site, f"{n}", patient=patient, grey=n + 1))
        journal.commit()
    wrong = write_csv(tmp_path / "l.csv", "sop_instance_uid,split", ("0", "train"), ("1", "test"))
    assert take(site, labels=wrong).holdings.problems == {"patient_in_two_splits": 1}
    assert set(store_of(site).split[:2].tolist()) == {"test"}
    with journal_of(site) as journal:
        remove_patient(journal, pseudonyms_of(site), found_image(site, "2", patient="P2").keys.patient)
    assert take(site).holdings.images == 2  # a purge is finished whatever the labels say
    right = write_csv(tmp_path / "l.csv", "sop_instance_uid,split", ("0", "test"), ("1", "test"))
    assert take(site, labels=right).holdings.images == 2


def test_the_files_here_are_what_a_scanner_would_send(tmp_path):
    assert pydicom.dcmread(write_dicom(tmp_path / "1.dcm", 1)).PatientID == "P1"
