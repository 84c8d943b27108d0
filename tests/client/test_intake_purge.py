"""Purge: a patient is gone from everything the site has, stays out, and the proof would find what is left."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from intake_sites import (
    HEIGHT,
    WIDTH,
    add_all,
    dataset,
    everything_below,
    found_image,
    found_mask,
    journal_of,
    make_site,
    pseudonyms_of,
    store_of,
    take,
    write_dicom,
)
from PIL import Image

from client.intake.cli import purge_patient
from client.intake.generation import generations, write_generation
from client.intake.journal import Label
from client.intake.purge import finish_purge, purge_everything, remove_patient, search
from multimix.data.dicom import accession_key, patient_key, uid_key
from multimix.data.phantom_dicom import dicom_bytes
from multimix.data.store import IMAGES, MASKS
from multimix.errors import SiteError
from tests.dicom_seg import lung_segmentation


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path / "site")


def label(site, *, uid="", accession="", patient="", **said):
    names = pseudonyms_of(site)
    keys = {
        "uid": uid_key(names, uid) if uid else "",
        "accession": accession_key(names, accession) if accession else "",
        "patient": patient_key(names, patient) if patient else "",
    }
    return Label(**{**keys, "label": "normal", "split": "", "mask_key": "", "mask_convention": "", **said})


def fill(site):
    """Fill a site with P1 (two images, a SEG, a mask by accession) and P2 (an image, a mask); four generations."""
    images = [
        found_image(site, "1", patient="P1", accession="A1", grey=11),
        found_image(site, "2", patient="P1", accession="A2", grey=12, review="view_unknown"),
        found_image(site, "3", patient="P2", accession="A3", grey=13),
    ]
    masks = [found_mask(site, image="2", rows=5), found_mask(site, rows=6), found_mask(site, rows=7)]
    labels = [
        label(site, accession="A1", mask_key="key 4"),
        label(site, patient="P1"),
        label(site, uid="2"),
        label(site, patient="P2", mask_key="key 5"),
    ]
    with journal_of(site) as journal:
        for part in (images[:1], images[1:2], images[2:], masks):
            add_all(journal, *part)
            write_generation(site, journal)
        journal.replace_labels("labels", labels)
        journal.commit()
        write_generation(site, journal)


def traces(site):
    """Return everything that P1 could leave: pseudonyms as text, and records of pixels."""
    names = pseudonyms_of(site)
    images = [found_image(site, "1", patient="P1", accession="A1", grey=11), found_image(site, "2", grey=12)]
    masks = [found_mask(site, image="2", rows=5), found_mask(site, rows=6)]
    texts = [patient_key(names, "P1"), accession_key(names, "A1"), accession_key(names, "A2")]
    texts += [text for each in images for text in (each.keys.uid, each.content, each.file_hash)]
    return [text.encode() for text in texts] + [each.pixels.tobytes() for each in (*images, *masks)]


def left(site):
    return [trace for trace in traces(site) if trace in everything_below(site.path)]


def test_a_patient_is_gone_from_journal_pixels_labels_and_generations(site):
    fill(site)
    assert len(left(site)) == len(traces(site))
    proof = purge_patient(site, "P1")
    assert left(site) == []
    assert (proof.holds, proof.images_removed, proof.masks_removed, proof.traces_found) == (True, 2, 2, 0)
    assert proof.bytes_searched == sum(
        {path.stat().st_ino: path.stat().st_size for path in site.path.rglob("*") if not path.is_dir()}.values()
    )
    with journal_of(site) as journal:
        assert [image.record for image in journal.kept_images()] == [0]
        assert len(journal.labels()) == 1


def test_the_other_patient_is_as_before(site):
    fill(site)
    purge_patient(site, "P1")
    store = store_of(site)
    image, mask = store.image_pages.read(store.image_row), store.mask_pages.read(store.mask_row.astype(np.int64))
    assert (image == 13).all()
    assert image.shape[0] == 1
    assert mask.tobytes() == found_mask(site, rows=7).pixels.tobytes()
    assert store.label.tolist() == [0]


def test_a_reader_of_the_generation_before_is_not_disturbed(site):
    fill(site)
    pinned = store_of(site)
    purge_patient(site, "P1")
    assert generations(site.store) == [int(store_of(site).path.name[-6:])]
    assert sorted(pinned.image_pages.read(pinned.image_row)[:, 0, 0].tolist()) == [11, 13]


def test_a_mask_that_another_patient_shares_stays_with_that_one(site):
    images = [found_image(site, f"{n}", patient=f"P{n}", grey=n) for n in (1, 2)]
    with journal_of(site) as journal:
        add_all(journal, *images, found_mask(site), found_mask(site))
        journal.replace_labels(
            "labels", [label(site, patient="P1", mask_key="key 2"), label(site, patient="P2", mask_key="key 3")]
        )
        journal.commit()
        write_generation(site, journal)
    assert purge_patient(site, "P1").holds
    assert store_of(site).mask_row.tolist() == [0]


def test_an_equal_mask_of_another_patient_is_no_trace(site):
    with journal_of(site) as journal:
        for n in (1, 2):
            seg = replace(found_mask(site, image=f"{n}"), content=f"before it was made small, mask {n}")
            add_all(journal, found_image(site, f"{n}", patient=f"P{n}", grey=n), seg)
        write_generation(site, journal)
    proof = purge_patient(site, "P1")
    assert (proof.holds, proof.masks_removed) == (True, 1)
    assert store_of(site).mask_row.tolist() == [0]


def test_an_accession_number_that_another_patient_has_too_is_not_taken_from_that_one(site):
    images = [found_image(site, f"{n}", patient=f"P{n}", accession="A1", grey=n) for n in (1, 2)]
    with journal_of(site) as journal:
        add_all(journal, *images)
        journal.replace_labels("labels", [label(site, accession="A1")])
        journal.commit()
        write_generation(site, journal)
    assert purge_patient(site, "P1").holds
    assert store_of(site).label.tolist() == [0]


def test_an_unknown_patient_is_refused_and_nothing_is_changed(site):
    fill(site)
    before = everything_below(site.store)
    for identifier, issuer in (("P3", ""), ("", ""), ("P1", "another issuer")):
        with pytest.raises(SiteError) as refused:
            purge_patient(site, identifier, issuer)
        assert refused.value.reason == "patient_unknown"
    assert everything_below(site.store) == before


@pytest.mark.parametrize("start", ["take", "purge"])
def test_a_purge_that_was_killed_after_its_decision_is_finished_at_the_next_start(site, start):
    fill(site)
    with journal_of(site) as journal:
        remove_patient(journal, pseudonyms_of(site), patient_key(pseudonyms_of(site), "P1"))
    assert left(site)  # in older generations
    if start == "take":
        take(site)
    else:
        purge_patient(site, "P2")
    assert left(site) == []
    assert len(generations(site.store)) == 1


def test_a_purge_that_was_killed_before_its_decision_never_happened(site):
    fill(site)
    with journal_of(site) as journal:
        pools = sorted(journal.folder.glob("pool-*"))
        (journal.folder / "pool-2").mkdir()  # written anew in part
        (journal.folder / "pool-2" / IMAGES).write_bytes(b"half")
    take(site)
    assert sorted(site.intake.glob("pool-*")) == pools
    assert len(left(site)) == len(traces(site))


# --- the proof


@pytest.mark.parametrize("planted", ["pseudonym", "image", "mask"])
def test_the_proof_finds_what_a_purge_would_have_forgotten(site, planted):
    fill(site)
    with journal_of(site) as journal:
        gone = remove_patient(journal, pseudonyms_of(site), patient_key(pseudonyms_of(site), "P1"))
    with journal_of(site) as journal:
        finish_purge(site, journal)
    assert search(site, gone).holds
    forgotten = site.path / "forgotten"
    forgotten.mkdir()
    if planted == "pseudonym":
        (forgotten / "notes").write_bytes(b"x" * 70_001 + gone.texts[0])
    else:
        name, record = (IMAGES, gone.images[1]) if planted == "image" else (MASKS, gone.masks[0])
        (forgotten / name).write_bytes(bytes(2 * len(record)) + record)
    found = search(site, gone)
    assert (found.holds, found.traces_found) == (False, 1)
    assert json.loads(found.as_json())["holds"] is False


def test_the_proof_holds_no_pseudonym(site):
    fill(site)
    shown = purge_patient(site, "P1")
    text = (repr(shown) + shown.as_json()).encode()
    assert not [trace for trace in traces(site) if trace in text]


# --- a purged patient stays out


def export(folder):
    """Write images, a SEG, a mask and labels of the patients P1 and P2; return the labels file."""
    lung = np.zeros((HEIGHT, WIDTH), np.bool_)
    lung[20:70, 10:60] = True
    rows = []
    for n in (1, 2):
        write_dicom(folder / "dicom" / f"{n}.dcm", n, patient=f"P{n}", accession=f"A{n}")
        write_dicom(folder / "dicom" / f"{n}b.dcm", 10 + n, patient=f"P{n}", accession=f"B{n}")
        seg = lung_segmentation(dataset(n, patient=f"P{n}"), lung, segments="lung")
        (folder / "dicom" / f"{n}seg.dcm").write_bytes(dicom_bytes(seg))
        lung[n, 10:60] = True
        Image.fromarray(lung.astype(np.uint8) * np.uint8(255)).save(folder / f"{n}.png")
        rows.append((f"B{n}", "normal", f"{n}.png"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("accession", "label", "mask"), *rows])
    return folder / "labels.csv"


def test_a_purged_patient_is_not_taken_in_again_nor_are_its_masks_and_labels(site, tmp_path):
    labels = export(tmp_path / "export")
    first = take(site, tmp_path / "export" / "dicom", labels=labels)
    assert first.outcomes == {"stored": 8}
    assert (first.holdings.images, first.holdings.masked, first.holdings.labelled) == (4, 4, 2)
    assert purge_patient(site, "P1").holds
    for file in (tmp_path / "export" / "dicom").iterdir():
        file.rename(file.with_suffix(".moved"))
    again = take(site, tmp_path / "export" / "dicom", labels=labels)
    assert again.outcomes == {"patient_purged": 3}
    assert (again.holdings.images, again.holdings.masked, again.holdings.labelled) == (2, 2, 1)
    assert again.holdings.problems == {}
    with journal_of(site) as journal:
        assert (journal.images.count, journal.masks.count, len(journal.labels())) == (2, 2, 1)


def test_what_a_tombstone_says_does_not_tell_whose_it_is(site):
    fill(site)
    purge_patient(site, "P1")
    with journal_of(site) as journal:
        stones = {stone for (stone,) in journal.index.execute("SELECT tombstone FROM purged")}
    assert len(stones) == 1 + 2 + 2  # the patient, two images, two accession numbers
    assert not stones & {trace.decode("latin1") for trace in traces(site)}


# --- everything


def test_purging_everything_leaves_the_settings_alone(site):
    fill(site)
    site.received.mkdir()
    for name in ("received/1.dcm", "review.png", "site.html"):
        (site.path / name).write_bytes(b"PATIENT")
    secret = site.secret.read_bytes()
    count = sum(path.is_file() and not path.is_symlink() for path in site.path.rglob("*"))
    assert purge_everything(site) == count - 1
    assert [path.name for path in site.path.rglob("*")] == ["site.toml"]
    again = make_site(site.path / "inner")  # a site that starts anew
    assert again.secret.read_bytes() != secret
