"""What changes after a first intake: a corrected manifest, a second one, files that still wait, images of nobody."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from client.cli import app
from multimix.data.phantom_dicom import PhantomDicom, dicom_bytes, phantom_dataset
from multimix.data.radiographs import named_view
from multimix.data.store import Store, open_store

SIZE = 32


def command(site: Path, *arguments: str, stdin: str = "", code: int = 0) -> dict:
    done = CliRunner().invoke(app, [*arguments, "--site", str(site)], input=stdin)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if "--json" in arguments and not code else {}


@pytest.fixture
def site(tmp_path):
    command(tmp_path / "site", "init", "here", "--image-size", str(SIZE))
    return tmp_path / "site"


def picture(path: Path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 40), np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


def manifest(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "patient_id", "label", "view"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def labels(store: Store) -> list[int]:
    return sorted(store.label.tolist())


def test_a_corrected_patient_of_a_picture_takes_effect_and_decodes_nothing_anew(site, tmp_path):
    one, two = (picture(tmp_path / f"{i}.png", i) for i in range(2))
    table = manifest(tmp_path / "m.csv", {"image": one, "patient_id": "A"}, {"image": two, "patient_id": "A"})
    command(site, "intake", str(table))
    assert len(set(open_store(site / "store").patient.tolist())) == 1
    manifest(table, {"image": one, "patient_id": "A"}, {"image": two, "patient_id": "B"})
    assert command(site, "intake", str(table), "--json")["outcomes"] == {"corrected": 1}
    store = open_store(site / "store")
    assert len(store) == 2
    assert len(set(store.patient.tolist())) == 2
    assert store.image_pages.array.shape[0] == 2  # no record was added


def test_a_renamed_picture_keeps_its_label(site, tmp_path):
    picture(tmp_path / "old.png", 1)
    command(
        site, "intake", str(manifest(tmp_path / "m.csv", {"image": "old.png", "patient_id": "A", "label": "normal"}))
    )
    (tmp_path / "old.png").rename(tmp_path / "new.png")
    manifest(tmp_path / "m.csv", {"image": "new.png", "patient_id": "A", "label": "normal"})
    summary = command(site, "intake", str(tmp_path / "m.csv"), "--json")
    assert summary["outcomes"] == {"corrected": 1}
    assert summary["holdings"]["problems"] == {}
    assert labels(open_store(site / "store")) == [0]


def test_a_copy_under_another_patient_is_set_aside(site, tmp_path):
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 1)
    table = manifest(tmp_path / "m.csv", {"image": "a.png", "patient_id": "A"}, {"image": "b.png", "patient_id": "B"})
    assert command(site, "intake", str(table), "--json")["outcomes"] == {
        "stored": 1,
        "duplicate_pixels_other_patient": 1,
    }


def test_a_second_manifest_adds_to_the_labels_of_the_first(site, tmp_path):
    for name, label in (("first", "normal"), ("second", "pneumonia")):
        picture(tmp_path / name / f"{name}.png", len(name))
        row = {"image": f"{name}.png", "patient_id": name, "label": label}
        command(site, "intake", str(manifest(tmp_path / name / "m.csv", row)))
    assert labels(open_store(site / "store")) == [0, 1]


def test_a_lateral_of_a_manifest_is_set_aside_and_free_text_is_no_view(site, tmp_path):
    rows = [
        {"image": picture(tmp_path / f"{i}.png", i), "patient_id": str(i), "view": view}
        for i, view in enumerate(("AP Supine", "L LATERAL", "Marie's PA", "whatever"))
    ]
    assert command(site, "intake", str(manifest(tmp_path / "m.csv", *rows)), "--json")["outcomes"] == {
        "stored": 3,
        "lateral_view": 1,
    }
    assert open_store(site / "store").view.tolist() == ["AP", "PA", "frontal"]


@pytest.mark.parametrize(
    ("text", "view"),
    [("PA", "PA"), ("AP_PORTABLE", "AP"), ("Frontal", "frontal"), ("PA LAT", "lateral"), ("AP PA", "other"), ("?", "")],
)
def test_a_view_is_found_among_the_words_of_a_field(text, view):
    assert named_view(text) == view


def nobody(folder: Path, seed: int = 1) -> str:
    """Write a DICOM file that names no patient; return its SOP instance UID."""
    pixels = np.random.default_rng(seed).integers(0, 255, (80, 80), np.uint8)
    dataset = phantom_dataset(pixels, patient_id="", accession="", seed=seed, options=PhantomDicom())
    folder.mkdir(exist_ok=True)
    (folder / f"{seed}.dcm").write_bytes(dicom_bytes(dataset))
    return str(dataset.SOPInstanceUID)


def test_an_image_that_names_no_patient_is_purged_by_its_uid(site, tmp_path):
    uid = nobody(tmp_path / "dicom")
    nobody(tmp_path / "dicom", seed=2)
    command(site, "intake", str(tmp_path / "dicom"))
    proof = command(site, "purge", "--instance", "--json", stdin=f"{uid}\n")
    assert (proof["images_removed"], proof["holds"]) == (1, True)
    assert len(open_store(site / "store")) == 1
    assert command(site, "intake", str(tmp_path / "dicom"), "--json")["outcomes"] == {"patient_purged": 1}


def test_a_purge_refuses_while_received_files_wait(site, tmp_path):
    uid = nobody(tmp_path / "dicom")
    command(site, "intake", str(tmp_path / "dicom"))
    (site / "received").mkdir(mode=0o700)
    (site / "received" / "0.dcm").write_bytes((tmp_path / "dicom" / "1.dcm").read_bytes())
    command(site, "purge", "--instance", "--json", stdin=f"{uid}\n", code=2)
    assert command(site, "intake", "--received", "--json")["unchanged"] == 1
    assert command(site, "purge", "--instance", "--json", stdin=f"{uid}\n")["holds"]


def test_the_site_may_be_named_before_or_after_accept(tmp_path):
    for number, order in enumerate((("--site", "{}", "accept", "--all"), ("accept", "--all", "--site", "{}"))):
        site = tmp_path / f"site-{number}"
        command(site, "init", "here", "--image-size", str(SIZE))
        pixels = np.random.default_rng(number).integers(0, 255, (80, 80), np.uint8)
        dataset = phantom_dataset(pixels, patient_id="p", accession="", seed=1, options=PhantomDicom(view=""))
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "a.dcm").write_bytes(dicom_bytes(dataset))
        assert command(site, "intake", str(tmp_path / f"{number}"), "--json")["outcomes"] == {"view_unknown": 1}
        done = CliRunner().invoke(app, ["review", *(part.format(site) for part in order)])
        assert done.exit_code == 0, done.output
        assert len(open_store(site / "store")) == 1
