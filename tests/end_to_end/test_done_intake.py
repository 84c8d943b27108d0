"""What issue 3 calls done, on the real files of shared/data/dicom, by the commands a hospital engineer types."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.cli import app
from multimix.data.decode import Geometry, place
from multimix.data.store import open_store
from tests.conftest import REAL_DATA

DICOM = REAL_DATA / "dicom"
FUJI = ("chest_cr_fuji_mono1_10bit_explicitvr.dcm", "chest_cr_fuji_mono1_10bit_nopreamble.dcm")
RSNA = ("chest_cr_rsna_mono2_8bit_jpegbaseline.dcm", "chest_cr_rsna_retagged_mono1.dcm")
SIZE = 128

pytestmark = pytest.mark.data


def site_command(*arguments: str, site: Path) -> str:
    done = CliRunner().invoke(app, [*arguments, "--site", str(site)])
    assert done.exit_code == 0, done.output
    return done.stdout


def new_site(folder: Path) -> Path:
    site_command("init", "hospital", "--image-size", str(SIZE), site=folder)
    return folder


def take_in(source: Path, site: Path, *options: str) -> dict[str, dict[str, int]]:
    return json.loads(site_command("intake", str(source), "--json", *options, site=site))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    site = new_site(tmp_path_factory.mktemp("together") / "site")
    return site, take_in(DICOM, site), take_in(DICOM, site, "--without-preamble")


def test_in_one_go_one_of_each_pair_is_kept_and_every_other_file_has_its_reason(together):
    _, first, _ = together
    assert first["outcomes"] == {
        "stored": 4,  # Fuji, both Philips, RSNA
        "duplicate_uid_conflict": 1,  # the RSNA file that was tagged anew: its pixels differ
        "view_unknown": 1,  # the DX without a view
        "no_preamble": 1,  # the other Fuji
        "other_body_part": 7,  # hip, tibia, teeth
        "not_dicom": 1,  # the folder's README
    }


def test_the_file_without_preamble_needs_its_option_and_is_then_a_duplicate(together):
    _, first, second = together
    assert first["outcomes"]["no_preamble"] == 1
    assert second["outcomes"]["duplicate_uid"] == 1
    assert "stored" not in second["outcomes"]


def test_the_dx_without_a_view_waits_until_it_is_accepted(together):
    site, first, _ = together
    assert first["holdings"]["images"] == 4
    waiting = json.loads(site_command("review", "--json", site=site))
    assert [image["reason"] for image in waiting] == ["view_unknown"]
    done = CliRunner().invoke(app, ["review", "accept", waiting[0]["image"], "--view", "PA", "--site", str(site)])
    assert done.exit_code == 0, done.output
    assert len(open_store(site / "store")) == 5


def alone(name: str, folder: Path) -> np.ndarray:
    """The pixels of one file taken in by itself, accepted if it waits."""
    site, source = new_site(folder / name), folder / f"source {name}"
    source.mkdir()
    (source / name).write_bytes((DICOM / name).read_bytes())
    summary = take_in(source, site, "--without-preamble")
    if summary["holdings"]["review"]:
        CliRunner().invoke(app, ["review", "accept", "--all", "--site", str(site)])
    store = open_store(site / "store")
    assert len(store) == 1
    return store.image_pages.read(store.image_row)[0]


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("separate")
    return {file.name: alone(file.name, folder) for file in sorted(DICOM.glob("chest_*.dcm"))}


def test_taken_in_separately_all_seven_chest_files_are_stored(separate):
    assert len(separate) == 7


def test_the_fuji_pixels_are_equal(separate):
    first, second = (separate[name] for name in FUJI)
    assert np.array_equal(first, second)
    assert first.std() > 20


def test_the_retagged_rsna_file_is_the_exact_inverse_of_its_partner(separate):
    first, second = (separate[name] for name in RSNA)
    content = place(np.full((SIZE, SIZE), 255, np.uint8), Geometry(1024, 1024, 0.125, 0.125, 0, 0), SIZE)
    assert np.array_equal(first, content - second)
    assert first.std() > 20
