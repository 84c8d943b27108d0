"""`multimix-site check` on what was taken in: splits, labels, views, joins, appearance, crowds."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from client.intake.generation import Join
from client.intake.journal import Image
from client.preflight import data
from client.settings import SiteFolder, SiteSettings
from multimix.data.decode import Geometry
from multimix.data.store_writer import Entry

GEOMETRY = Geometry(64, 64, 1.0, 1.0, 0, 0)
ENTRY = Entry(0, None, "c0", "", "p0", "here", "", "PA", "unknown", "", "train", GEOMETRY, 100)


def entries(*changes: dict[str, object]) -> Join:
    rows = [
        ENTRY._replace(image_row=i, content_hash=f"c{i}", patient=f"p{i}")._replace(**change)
        for i, change in enumerate(changes)
    ]
    return Join(tuple(rows), {})


def images(*flags: str, decision: str = "accept") -> list[Image]:
    return [
        Image(i, f"u{i}", f"p{i}", "", "PA", f"c{i}", tuple(flag.split()), i, decision, "", GEOMETRY, 100)
        for i, flag in enumerate(flags)
    ]


def site(minimum: int = 2) -> SiteFolder:
    settings = SiteSettings.model_validate({"name": "a", "policy": {"minimum_cohort": minimum}})
    return SiteFolder(SimpleNamespace(), settings)


def test_a_patient_in_two_splits_fails():
    line = data._splits(entries({"patient": "p"}, {"patient": "p", "split": "test"}))
    assert line.status == "FAIL"
    assert line.finding.startswith("1 patients")


def test_equal_pixels_in_two_splits_fail():
    assert data._splits(entries({"content_hash": "c"}, {"content_hash": "c", "split": "test"})).status == "FAIL"


def test_splits_that_are_all_there_pass_and_an_empty_one_warns():
    full = entries({}, {"split": "validation"}, {"split": "test"})
    assert data._splits(full).status == "PASS"
    assert data._splits(entries({}, {})).status == "WARN"


@pytest.mark.parametrize(("pneumonia", "status"), [(2, "PASS"), (1, "WARN")])
def test_a_class_below_the_smallest_cohort_warns(pneumonia, status):
    found = entries({"label": "normal"}, {"label": "normal"}, *[{"label": "pneumonia"}] * pneumonia)
    line = next(line for line in data._classes(site(), found) if line.name == "labels")
    assert (line.status, line.finding) == (status, f"Labelled patients: 2 normal, {pneumonia} pneumonia.")


def test_a_patient_of_both_classes_warns():
    found = entries({"label": "normal", "patient": "p"}, {"label": "pneumonia", "patient": "p"})
    assert [line.status for line in data._classes(site(), found) if line.name == "label conflicts"] == ["WARN"]


def test_no_mask_warns_and_one_passes():
    for mask_row, status in ((None, "WARN"), (0, "PASS")):
        lines = {line.name: line for line in data._classes(site(), entries({"mask_row": mask_row}))}
        assert lines["masks"].status == status


def test_views_are_counted():
    assert data._views(entries({}, {"view": "AP"}, {})).finding == "Frontal views: 1 AP, 2 PA."
    assert data._views(entries()).status == "FAIL"


def test_each_label_that_met_no_image_is_told_with_what_to_do():
    lines = data._joins({"labels_without_image": 3})
    assert [line.status for line in lines] == ["WARN"]
    assert lines[0].finding.startswith("3 keys")
    assert lines[0].fix
    assert [line.status for line in data._joins({})] == ["PASS"]


def test_images_that_wait_for_a_person_warn():
    assert data._queue(images("", decision="review")).status == "WARN"
    assert data._queue(images("")).status == "PASS"


def test_a_store_that_is_mostly_inverted_fails_and_a_single_suspect_warns():
    inverted = "looks_inverted"
    assert [line.status for line in data._looks(images(inverted, inverted, ""))] == ["FAIL"]
    assert [line.status for line in data._looks(images(inverted, *[""] * 99))] == ["WARN"]
    assert [line.status for line in data._looks(images("", ""))] == ["PASS"]


def test_each_kind_of_suspect_has_a_line_of_its_own():
    lines = list(data._looks(images("looks_rotated text_heavy", "bits_stored_wrong")))
    assert len(lines) == 3
    assert all(line.name == "appearance" and line.fix for line in lines)


def test_a_patient_with_very_many_images_may_be_a_placeholder():
    crowd = entries(*[{"patient": "p"}] * (data.MANY_IMAGES + 1))
    assert data._crowds(crowd).status == "WARN"
    assert data._crowds(replace(crowd, entries=crowd.entries[1:])).status == "PASS"
