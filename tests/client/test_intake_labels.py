"""Labels files: what joins which image, and errors that say where without saying what."""

import pytest
from intake_sites import HEIGHT, WIDTH, add_all, found_image, found_mask, journal_of, make_site, pseudonyms_of

from client.intake.examine import Item
from client.intake.generation import join
from client.intake.journal import Label
from client.intake.labels import KEYS, VALUES, read_labels
from multimix.data.dicom import accession_key, patient_key, uid_key
from multimix.data.manifest import BEHIND_HEART, MEDIASTINUM_EXCLUDED
from multimix.errors import SiteError

SECRET_WORD = "MUELLER-1931"


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path / "site")


def labels_file(folder, *lines):
    file = folder / "labels.csv"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def read(site, *lines, label_map=None):
    return read_labels(labels_file(site.path, *lines), pseudonyms_of(site), label_map=label_map or {})


def joined(site, images, labels=(), masks=()):
    """Return the entries by UID pseudonym, and the problems."""
    with journal_of(site) as journal:
        assert set(add_all(journal, *images, *masks)) == {""}
        by_uid = {image.record: image.uid for image in journal.kept_images()}
        found = join(
            journal.kept_images("accept"),
            labels,
            journal.kept_masks(),
            pseudonyms=pseudonyms_of(site),
            source="clinic",
            mask_convention=MEDIASTINUM_EXCLUDED,
        )
    return {by_uid[entry.image_row]: entry for entry in found.entries}, dict(found.problems)


def test_keys_are_read_as_the_pseudonyms_that_images_have(site):
    names = pseudonyms_of(site)
    (label,) = read(site, "sop_instance_uid,accession,patient_id,issuer,label", "1.2.3 ,A1,P1,H1,normal").labels
    assert label[:4] == (
        uid_key(names, "1.2.3"),
        accession_key(names, "A1"),
        patient_key(names, "P1", "H1"),
        "normal",
    )
    assert len(set(label[:3])) == 3


def test_the_same_number_of_another_issuer_is_another_patient(site):
    without, with_issuer = read(site, "patient_id,issuer,label", "P1,,normal", "P1,H1,pneumonia").labels
    assert without.patient != with_issuer.patient


def test_a_word_of_the_hospital_is_translated_by_the_label_map(site):
    found = read(site, "patient_id,label", "P1,No Finding", "P2,normal", label_map={"No Finding": "normal"})
    assert [label.label for label in found.labels] == ["normal", "normal"]


def test_a_word_of_ours_means_what_it_says_whatever_the_map(site):
    found = read(site, "patient_id,label", "P1,normal", label_map={"normal": "pneumonia"})
    assert found.labels[0].label == "normal"


HEADER = "sop_instance_uid,patient_id,label,split,mask,mask_convention"
MISTAKES = {
    "column_unknown": (f"patient_id,{SECRET_WORD}", "P1,x"),
    "column_missing": ("label,split", "normal,train"),
    "row_malformed": ("patient_id,label", f"P1,normal,{SECRET_WORD}"),
    "value_missing": (HEADER, ",,normal,,,"),
    "label_unknown": (HEADER, f",P1,{SECRET_WORD},,,"),
    "split_unknown": (HEADER, f",P1,,{SECRET_WORD},,"),
    "mask_convention_unknown": (HEADER, f",P1,,,,{SECRET_WORD}"),
    "mask_missing": (HEADER, f",P1,,,{SECRET_WORD}.png,"),
    "label_conflict": (HEADER, f",{SECRET_WORD},normal,,,", f",{SECRET_WORD},pneumonia,,,"),
    "split_conflict": (HEADER, f",{SECRET_WORD},,train,,", f",{SECRET_WORD},,test,,"),
    "mask_convention_conflict": (HEADER, ",P1,,,,behind_heart", ",P1,,,,mediastinum_excluded"),
    "labels_empty": (HEADER,),
    "labels_unreadable": (HEADER, f'"{SECRET_WORD}'),
}


@pytest.mark.parametrize("reason", MISTAKES)
def test_a_mistake_is_refused_without_being_quoted(site, reason):
    with pytest.raises(SiteError) as refused:
        read(site, *MISTAKES[reason])
    assert refused.value.reason == reason
    assert SECRET_WORD not in str(refused.value)
    assert str(site.path) not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("path", ["../outside.png", "/etc/hostname", "nul\0.png", "x" * 5000, "masks.d"])
def test_a_mask_is_a_file_below_the_folder_of_the_labels(site, path):
    (site.path / "masks.d").mkdir()
    (site.path.parent / "outside.png").touch()
    with pytest.raises(SiteError) as refused:
        read(site, "patient_id,mask", f"P1,{path}")
    assert refused.value.reason in {"mask_missing", "labels_unreadable"}
    assert path not in str(refused.value)


def test_a_mistake_is_found_in_the_row_that_a_spreadsheet_shows(site):
    with pytest.raises(SiteError, match=r"row 6, column label: says otherwise than row 3 "):
        read(site, "patient_id,label", "P0,normal", "P1,normal", "", "P2,normal", "P1,pneumonia")


def test_every_column_has_its_place(site):
    assert read(site, ",".join((*KEYS, *VALUES)), "1.2,,,,normal,,,").labels


# --- join


def key(site, kind, name):
    made = {"uid": uid_key, "accession": accession_key, "patient": patient_key}[kind]
    return made(pseudonyms_of(site), name)


def label(site, *, uid="", accession="", patient="", **said):
    keys = {"uid": uid, "accession": accession, "patient": patient}
    given = {kind: key(site, kind, name) if name else "" for kind, name in keys.items()}
    return Label(**{**given, "label": "", "split": "", "mask_key": "", "mask_convention": "", **said})


def test_a_row_by_uid_goes_before_one_by_accession_and_that_before_one_by_patient(site):
    images = [found_image(site, f"{n}", accession="A2" if n == 2 else "A1", grey=n) for n in (1, 2, 3)]
    images.append(found_image(site, "4", accession="A3", grey=4))
    told = [
        label(site, patient="P1", label="other"),
        label(site, accession="A2", label="pneumonia"),
        label(site, accession="A1", label="unknown"),
        label(site, uid="1", label="normal"),
    ]
    entries, problems = joined(site, images, told)
    said = [entries[key(site, "uid", f"{n}")].label for n in (1, 2, 3, 4)]
    assert said == ["normal", "pneumonia", "unknown", "other"]
    assert problems == {}


def test_what_a_closer_row_leaves_open_a_wider_one_says(site):
    told = [label(site, uid="1", split="test"), label(site, patient="P1", label="normal")]
    entries, _ = joined(site, [found_image(site, "1")], told)
    (entry,) = entries.values()
    assert (entry.label, entry.split) == ("normal", "test")


def test_an_accession_number_that_two_patients_have_is_told_apart_by_the_patient(site):
    images = [
        found_image(site, "1", patient="P1", accession="A", grey=1),
        found_image(site, "2", patient="P2", accession="A", grey=2),
    ]
    told = [
        label(site, accession="A", patient="P1", label="normal"),
        label(site, accession="A", patient="P2", label="pneumonia"),
    ]
    entries, _ = joined(site, images, told)
    assert [entries[key(site, "uid", uid)].label for uid in ("1", "2")] == ["normal", "pneumonia"]


def test_keys_that_meet_no_image_are_counted(site):
    told = [label(site, uid="none", label="normal"), label(site, patient="nobody", label="normal")]
    entries, problems = joined(site, [found_image(site, "1")], told)
    assert problems == {"labels_without_image": 2}
    assert [entry.label for entry in entries.values()] == ["unknown"]


def test_a_segmentation_finds_its_image_and_a_mask_of_the_labels_file_goes_before_it(site):
    images = [found_image(site, f"{n}", grey=n) for n in (1, 2)]
    masks = [found_mask(site, image="1"), found_mask(site, image="2"), found_mask(site, rows=9)]
    told = [label(site, uid="2", mask_key="key 4", mask_convention=BEHIND_HEART)]  # the fifth that is added
    entries, problems = joined(site, images, told, masks)
    chosen = [(entries[key(site, "uid", uid)].mask_row, entries[key(site, "uid", uid)].mask_convention) for uid in "12"]
    assert chosen == [(0, MEDIASTINUM_EXCLUDED), (2, BEHIND_HEART)]
    assert problems == {}


def test_a_mask_that_fits_several_images_is_given_to_none(site):
    images = [found_image(site, f"{n}", grey=n) for n in (1, 2)]
    entries, problems = joined(site, images, [label(site, patient="P1", mask_key="key 2")], [found_mask(site)])
    assert [entry.mask_row for entry in entries.values()] == [None, None]
    assert problems == {"mask_ambiguous": 2}


def test_a_mask_that_two_rows_name_for_one_image_is_not_ambiguous(site):
    told = [label(site, uid="1", mask_key="key 1"), label(site, patient="P1", mask_key="key 1")]
    entries, problems = joined(site, [found_image(site, "1")], told, [found_mask(site)])
    assert [entry.mask_row for entry in entries.values()] == [0]
    assert problems == {}


@pytest.mark.parametrize("seg", [True, False])
def test_a_mask_of_another_size_is_not_used(site, seg):
    mask = found_mask(site, image="1" if seg else "", width=WIDTH + 1)
    told = [] if seg else [label(site, uid="1", mask_key="key 1")]
    entries, problems = joined(site, [found_image(site, "1")], told, [mask])
    assert [(entry.mask_row, entry.mask_convention) for entry in entries.values()] == [(None, "")]
    assert problems == {"mask_size_differs": 1}
    assert (WIDTH, HEIGHT) != (WIDTH + 1, HEIGHT)


def test_a_segmentation_that_a_row_gives_to_another_image_than_its_own_is_not_used(site):
    images = [found_image(site, f"{n}", grey=n) for n in (1, 2)]
    told = [label(site, uid="1", mask_key="key 2")]
    entries, problems = joined(site, images, told, [found_mask(site, image="2")])
    assert [entries[key(site, "uid", uid)].mask_row for uid in "12"] == [None, 0]
    assert problems == {"mask_unusable": 1}


def test_a_mask_that_was_set_aside_is_reported(site):
    entries, problems = joined(site, [found_image(site, "1")], [label(site, uid="1", mask_key="not kept")])
    assert [entry.mask_row for entry in entries.values()] == [None]
    assert problems == {"mask_unusable": 1}


def test_a_patient_told_two_splits_is_wholly_in_the_later_one(site):
    images = [found_image(site, f"{n}", patient=SECRET_WORD, grey=n) for n in (1, 2)]
    told = [label(site, uid="1", split="train"), label(site, uid="2", split="test")]
    entries, problems = joined(site, images, told)
    assert {entries[each.keys.uid].split for each in images} == {"test"}
    assert problems["patient_in_two_splits"] == 1


def test_a_split_given_by_uid_holds_for_all_images_of_the_patient(site):
    for split in ("train", "validation", "test"):
        images = [found_image(site, f"{split}{n}", patient=split, grey=n, content=split + str(n)) for n in (1, 2)]
        entries, _ = joined(site, images, [label(site, uid=f"{split}2", split=split)])
        assert {entries[each.keys.uid].split for each in images} == {split}


def test_no_item_shows_its_path():
    assert repr(Item("key", "dicom", labels_file)) == "Item(dicom)"
