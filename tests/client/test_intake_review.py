"""The review queue: a person decides, once, and what is rejected is no longer there."""

import json

import numpy as np
import pytest
from intake_sites import SIZE, journal_of, make_site, store_of, take, write_dicom
from PIL import Image
from typer.testing import CliRunner

from client.cli import app
from client.intake.review import COLUMNS, ON_A_SHEET, Queue, contact_sheet, resolve_ids
from multimix.errors import SiteError


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """A site with two images without a view, one without a body part (but a view) and one that is accepted."""
    base = tmp_path_factory.mktemp("review")
    for n, about in enumerate(({"view": ""}, {"view": ""}, {"body_part": "", "view": "AP"}, {})):
        write_dicom(base / "export" / f"{n}.dcm", n, patient=f"P{n}", modality="CR", **about)
    site = make_site(base / "site")
    assert take(site, base / "export").outcomes == {"view_unknown": 2, "body_part_unknown": 1, "stored": 1}
    return site


@pytest.fixture
def site(taken, tmp_path):
    """The site above, each test with its own copy."""
    import shutil

    shutil.copytree(taken.path, tmp_path / "site", symlinks=True)
    return type(taken)(tmp_path / "site", taken.settings)


def command(site, *words):
    result = CliRunner().invoke(app, ["review", *words, "--site", str(site.path)])
    return result.exit_code, result.output


def queue(site):
    code, printed = command(site, "--json")
    assert code == 0
    return {each["image"]: each["reason"] for each in json.loads(printed)}


def test_the_queue_lists_what_waits_and_draws_it_for_this_user_alone(site):
    assert sorted(queue(site).values()) == ["body_part_unknown", "view_unknown", "view_unknown"]
    sheet = site.path / "review.png"
    assert sheet.stat().st_mode & 0o777 == 0o600
    assert Image.open(sheet).info == {}
    code, printed = command(site)
    assert code == 0
    assert "3 images wait" in printed
    assert str(site.path) not in printed


def test_an_accepted_image_is_in_a_new_generation_with_the_view_given(site):
    name = next(name for name, reason in queue(site).items() if reason == "view_unknown")
    assert command(site, "accept", name, "--view", "AP")[0] == 0
    store = store_of(site)
    assert len(store) == 2
    assert sorted(store.view.tolist()) == ["AP", "PA"]
    assert name not in queue(site)


def test_without_a_word_the_view_is_what_the_file_says_else_frontal(site):
    assert command(site, "accept", "--all")[0] == 0
    assert sorted(store_of(site).view.tolist()) == ["AP", "PA", "frontal", "frontal"]
    assert queue(site) == {}
    assert not (site.path / "review.png").exists()


def test_the_pixels_of_a_rejected_image_are_gone_and_nobody_is_asked_again(site, taken):
    first, *others = queue(site)
    with journal_of(site) as journal:
        pixels = journal.images.read(dict(Queue.of(journal).named())[first].record)
        kept = [journal.images.read(image.record) for image in journal.kept_images() if f"r{image.id}" != first]
    assert any(pixels)
    assert command(site, "reject", first)[0] == 0
    assert not any(pixels in path.read_bytes() for path in site.path.rglob("*.u8"))
    with journal_of(site) as journal:
        assert [journal.images.read(image.record) for image in journal.kept_images()] == kept
    export = taken.path.parent / "export"
    again = take(site, export, without_preamble=True)  # other rules: what was set aside would be examined again
    assert (again.outcomes, again.unchanged) == ({}, 4)
    assert list(queue(site)) == others
    assert len(store_of(site)) == 1


def test_a_rejected_image_is_not_asked_for_under_another_name_either(site, taken, tmp_path):
    command(site, "reject", "--all")
    for file in (taken.path.parent / "export").iterdir():
        (tmp_path / f"other-{file.name}").write_bytes(file.read_bytes())
    (tmp_path / "elsewhere").mkdir()
    for file in tmp_path.glob("other-*"):
        file.rename(tmp_path / "elsewhere" / file.name)
    assert take(site, tmp_path / "elsewhere").outcomes == {}
    assert queue(site) == {}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["accept"], "review_what"),
        (["accept", "r1", "--all"], "review_what"),
        (["accept", "r999"], "review_unknown"),
        (["reject", "r1", "r999"], "review_unknown"),
        (["accept", "--all", "--view", "LL"], "view_unknown"),
    ],
)
def test_a_decision_that_is_not_clear_is_refused_and_changes_nothing(site, words, reason):
    before = queue(site)
    code, printed = command(site, *words)
    assert (code, reason in printed) == (2, True)
    assert queue(site) == before


def test_names_that_are_said_twice_count_once(site):
    with journal_of(site) as journal:
        waiting = Queue.of(journal)
    name = waiting.named()[0][0]
    assert resolve_ids(waiting, [name, name], everything=False) == [waiting.images[0]]
    with pytest.raises(SiteError):
        resolve_ids(waiting, [], everything=False)


@pytest.mark.parametrize("count", [1, COLUMNS, COLUMNS + 1, ON_A_SHEET])
def test_a_contact_sheet_has_a_place_for_every_picture(count):
    tiles = [(f"r{n}", Image.fromarray(np.full((SIZE, SIZE), 100, np.uint8))) for n in range(count)]
    sheet = np.asarray(contact_sheet(tiles))
    assert (sheet == 100).sum() == count * (192 - 4) ** 2
