"""The journal: what is kept, what is a duplicate, and that nothing but what was committed counts."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intake_sites import SIZE, add_all, found_image, found_mask, journal_of, make_site

from client.intake.examine import aside
from client.intake.journal import is_decoded
from multimix.data.decode import Preprocessing
from multimix.data.store import IMAGES
from multimix.errors import SiteError


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path / "site")


@pytest.fixture(scope="module")
def any_site(tmp_path_factory):
    return make_site(tmp_path_factory.mktemp("journal") / "site")


SECOND = {
    "duplicate_uid": {"uid": "1", "grey": 1},
    "duplicate_uid_conflict": {"uid": "1", "grey": 2},
    "duplicate_pixels": {"uid": "2", "grey": 1},
    "duplicate_pixels_other_patient": {"uid": "2", "grey": 1, "patient": "P2"},
    "": {"uid": "2", "grey": 2, "patient": "P2"},
}


@pytest.mark.parametrize("reason", SECOND)
def test_a_second_image_is_kept_only_if_uid_and_pixels_are_new(site, reason):
    with journal_of(site) as journal:
        first = found_image(site, "1", grey=1)
        assert add_all(journal, first, found_image(site, **SECOND[reason])) == ["", reason]
        assert len(journal.kept_images()) == journal.images.count == (1 if reason else 2)


def test_a_second_segmentation_of_an_image_is_a_duplicate_or_a_conflict(site):
    with journal_of(site) as journal:
        same, other = found_mask(site, image="1", rows=8), found_mask(site, image="1", rows=9)
        assert add_all(journal, same, same, other) == ["", "duplicate_mask", "mask_conflict"]
        assert len(journal.kept_masks()) == journal.masks.count == 1


def test_equal_masks_of_two_files_are_stored_once_and_found_by_both(site):
    with journal_of(site) as journal:
        assert add_all(journal, found_mask(site), found_mask(site)) == ["", "duplicate_mask"]
        assert journal.masks.count == 1
        assert [mask.record for mask in journal.kept_masks().values()] == [0, 0]


def test_equal_bits_of_another_matrix_are_another_mask(site):
    with journal_of(site) as journal:
        assert add_all(journal, found_mask(site), found_mask(site, width=70)) == ["", ""]


@settings(max_examples=25)
@given(order=st.randoms(use_true_random=False))
def test_what_is_stored_of_different_images_does_not_depend_on_their_order(any_site, tmp_path_factory, order):
    images = [found_image(any_site, f"{n}", patient=f"P{n % 3}", grey=n + 1) for n in range(6)]
    shuffled = random.Random(order.random()).sample(images, len(images))
    site = make_site(tmp_path_factory.mktemp("order") / "site")
    with journal_of(site) as journal:
        add_all(journal, *shuffled)
        kept = journal.kept_images()
        stored = {image.uid: journal.images.read(image.record) for image in kept}
    assert stored == {image.keys.uid: image.pixels.tobytes() for image in images}
    assert {(image.uid, image.patient) for image in kept} == {image.keys[:2] for image in images}


def test_what_was_not_committed_never_happened(site):
    first, second = found_image(site, "1", grey=1), found_image(site, "2", grey=2)
    with journal_of(site) as journal:
        add_all(journal, first)
        journal.add("late", second)
    with journal_of(site) as journal:
        assert [image.uid for image in journal.kept_images()] == [first.keys.uid]
        assert "late" not in journal.met()
        assert (journal.pool / IMAGES).stat().st_size == SIZE * SIZE
        assert add_all(journal, second) == [""]
        assert np.frombuffer(journal.images.read(1), np.uint8).tolist() == [2] * SIZE**2


def test_only_what_was_set_aside_is_examined_again_under_other_rules(site):
    with journal_of(site, rules="a") as journal:
        journal.add("kept", found_image(site, "1"))
        journal.add("waits", found_image(site, "2", grey=2, review="view_unknown"))
        journal.add("copy", found_image(site, "1"))
        journal.add("aside", aside("no_preamble"))
        journal.commit()
        assert journal.met() == {"kept", "waits", "copy", "aside"}
    with journal_of(site, rules="b") as journal:
        assert journal.met() == {"kept", "waits", "copy"}


def test_an_outcome_takes_the_place_of_the_earlier_one_of_the_same_item(site):
    with journal_of(site) as journal:
        journal.add("item", aside("no_preamble"))
        journal.add("item", found_image(site, "1"))
        assert journal.counts("reason") == {"": 1}
        assert len(journal.kept_images()) == 1


def test_workers_know_what_is_decoded_and_nothing_that_was_set_aside(site):
    kept, other = found_image(site, "1", grey=1), found_image(site, "1", grey=2)
    with journal_of(site) as journal:
        add_all(journal, kept, other)
        assert is_decoded(journal.path, kept.file_hash)
        assert not is_decoded(journal.path, other.file_hash)


def test_a_file_of_known_bytes_is_tied_to_its_image_without_pixels(site):
    kept = found_image(site, "1")
    with journal_of(site) as journal:
        journal.add("first", kept)
        assert journal.add("moved", aside("unchanged", file_hash=kept.file_hash)) == "unchanged"
        assert journal.met() == {"first", "moved"}
        assert journal.images.count == 1


def test_a_second_process_is_told_that_intake_runs(site):
    with journal_of(site), pytest.raises(SiteError) as refused, journal_of(site):
        pass
    assert refused.value.reason == "intake_running"


@pytest.mark.parametrize("other", [Preprocessing(64), Preprocessing(SIZE, "stretch")])
def test_images_of_another_size_or_fit_are_not_mixed_in(site, other):
    with journal_of(site) as journal:
        add_all(journal, found_image(site, "1"))
    changed = type(site)(site.path, site.settings.model_copy(update={"image_size": other.image_size, "fit": other.fit}))
    with pytest.raises(SiteError) as refused, journal_of(changed):
        pass
    assert refused.value.reason == "preprocessing_changed"


def test_missing_pixels_are_noticed(site):
    with journal_of(site) as journal:
        add_all(journal, found_image(site, "1"))
        pool = journal.pool
    (pool / IMAGES).write_bytes(b"")
    with pytest.raises(SiteError) as refused, journal_of(site):
        pass
    assert refused.value.reason == "journal_damaged"


def test_everything_that_intake_keeps_is_closed_to_others(site):
    with journal_of(site) as journal:
        add_all(journal, found_image(site, "1"), found_mask(site))
        modes = {path.stat().st_mode & 0o077 for path in site.intake.rglob("*")}
    assert modes == {0}
    assert site.intake.stat().st_mode & 0o077 == 0
