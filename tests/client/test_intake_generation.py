"""Generations of the store: what training has open stays, and nothing new is written when nothing changed."""

import grp
import os

import numpy as np
import pytest
from intake_sites import SIZE, add_all, found_image, found_mask, journal_of, make_site, pseudonyms_of, store_of

from client.intake.generation import KEPT, SHARES, generations, write_generation
from client.intake.journal import Label
from client.preflight.permissions import permissions
from multimix.data.dicom import patient_key, uid_key
from multimix.data.store import CURRENT, IMAGES, INDEX


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path / "site")


def grow(site, *found, labels=None):
    """Take in what workers found; return the holdings of the generation written."""
    with journal_of(site) as journal:
        assert set(add_all(journal, *found)) <= {"", "view_unknown", "duplicate_mask"}
        if labels is not None:
            journal.replace_labels("labels", labels)
        journal.commit()
        return write_generation(site, journal)


def row(site, *, uid="", patient="", **said):
    names = pseudonyms_of(site)
    keys = {"uid": uid_key(names, uid) if uid else "", "patient": patient_key(names, patient) if patient else ""}
    return Label(**{"accession": "", **keys, "label": "", "split": "", "mask_key": "", "mask_convention": "", **said})


def greys(store):
    return sorted(int(image[0, 0]) for image in store.image_pages.read(store.image_row))


def split_of(store):
    """Return the split of each image by its grey level."""
    pixels = store.image_pages.read(store.image_row)
    return {int(image[0, 0]): str(split) for image, split in zip(pixels, store.split, strict=True)}


def test_only_accepted_images_are_in_the_store(site):
    holdings = grow(
        site, found_image(site, "1", grey=1), found_image(site, "2", patient="P2", grey=2, review="view_unknown")
    )
    assert (holdings.images, holdings.patients, holdings.review) == (1, 1, 1)
    assert greys(store_of(site)) == [1]


def test_an_open_store_stays_as_it_was_while_others_come(site):
    grow(site, found_image(site, "1", grey=1))
    pinned = store_of(site)
    for n in range(2, 2 + KEPT + 1):
        grow(site, found_image(site, f"{n}", grey=n))
    assert not pinned.path.exists()  # its generation is gone, what is open of it is not
    assert greys(pinned) == [1]
    assert greys(store_of(site)) == [1, 2, 3, 4, 5]


def test_generations_share_the_pixels_on_disk(site):
    for n in (1, 2):
        grow(site, found_image(site, f"{n}", grey=n))
    with journal_of(site) as journal:
        places = [journal.pool, *(site.store / f"generation-{n:06d}" for n in (1, 2))]
    inodes = {(place / IMAGES).stat().st_ino for place in places}
    assert len(inodes) == 1
    assert (places[0] / IMAGES).stat().st_size == 2 * SIZE**2


def test_only_the_newest_generations_stay(site):
    for n in range(1, KEPT + 3):
        grow(site, found_image(site, f"{n}", grey=n))
    assert generations(site.store) == [3, 4, 5]
    assert (site.store / CURRENT).readlink().name == "generation-000005"


def test_nothing_new_makes_no_generation(site):
    first = grow(site, found_image(site, "1"), labels=[row(site, uid="1", label="normal")])
    index = site.store / "generation-000001" / INDEX
    before = index.stat()
    again = grow(site, labels=[row(site, uid="1", label="normal")])
    assert again == first
    assert index.stat() == before
    assert generations(site.store) == [1]


def test_a_corrected_label_makes_a_generation(site):
    grow(site, found_image(site, "1"), labels=[row(site, uid="1", label="normal")])
    grow(site, labels=[row(site, uid="1", label="pneumonia")])
    assert generations(site.store) == [1, 2]
    assert store_of(site).label.tolist() == [1]


def test_images_can_share_one_mask(site):
    labels = [row(site, uid="1", mask_key="key 2"), row(site, uid="2", mask_key="key 3")]
    images = [found_image(site, f"{n}", grey=n) for n in (1, 2)]
    assert grow(site, *images, found_mask(site), found_mask(site), labels=labels).masked == 2
    assert store_of(site).mask_row.tolist() == [0, 0]


def test_a_patient_keeps_its_split_when_others_come_and_all_its_images_are_in_it(site):
    first = [found_image(site, f"{n}", patient=f"P{n}", grey=n) for n in range(1, 31)]
    grow(site, *first)
    before = split_of(store_of(site))
    later = [found_image(site, f"{n}", patient=f"P{n}", grey=n) for n in range(31, 61)]
    siblings = [found_image(site, f"{n}b", patient=f"P{n}", grey=100 + n) for n in range(1, 31)]
    grow(site, *later, *siblings)
    after = split_of(store_of(site))
    assert {grey: after[grey] for grey in before} == before
    assert {grey: after[100 + grey] for grey in before} == before


def test_patients_are_shared_out_as_the_shares_say(site):
    count = 2000
    names = pseudonyms_of(site)
    drawn = np.array([names.fraction("split", patient_key(names, f"P{n}")) for n in range(count)])
    parts = np.array([(drawn < SHARES[0]).mean(), (drawn >= SHARES[1]).mean()])
    expected = np.array([0.7, 0.2])
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(parts - expected) < 5 * deviation).all()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_that_is_given_holds(site, split):
    images = [found_image(site, f"{n}", patient=f"P{n}", grey=n) for n in range(1, 9)]
    grow(site, *images, labels=[row(site, patient=f"P{n}", split=split) for n in range(1, 9)])
    assert set(split_of(store_of(site)).values()) == {split}


def test_the_store_is_closed_to_others_without_a_group(site):
    grow(site, found_image(site, "1"), found_mask(site))
    assert {path.lstat().st_mode & 0o077 for path in site.store.rglob("*") if not path.is_symlink()} == {0}


@pytest.fixture
def group():
    if os.geteuid() == 0:
        return next(each for each in grp.getgrall() if each.gr_gid != os.getegid())
    return grp.getgrgid(os.getegid())


def test_a_group_may_read_the_store_and_pass_through_the_site_but_list_nothing_else(site, group, tmp_path):
    grow(site, found_image(site, "1"), found_mask(site))
    granted = make_site(tmp_path / "site2", store_group=group.gr_name)
    shared = type(site)(site.path, granted.settings)
    grow(shared)  # nothing but the group is new
    folder = site.store / "generation-000002"
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("images.u8", "masks.u8", "index.sqlite"), 0o640
    )
    assert {path.stat().st_gid for path in (folder, site.store, site.path, *folder.iterdir())} == {group.gr_gid}
    assert [path.stat().st_mode & 0o777 for path in (site.path, site.store, folder)] == [0o710, 0o750, 0o750]
    assert [path.stat().st_mode & 0o777 for path in (site.secret, site.intake)] == [0o600, 0o700]
    assert all("FAIL" not in line.status for line in permissions(site.path, group_readable=True))


def test_what_a_killed_publication_left_is_removed(site):
    grow(site, found_image(site, "1", grey=1))
    (site.store / ".generation-000002.abc").mkdir()
    (site.store / ".generation-000002.abc" / "images.u8").touch()
    grow(site, found_image(site, "2", grey=2))
    assert sorted(path.name for path in site.store.iterdir()) == ["current", "generation-000001", "generation-000002"]


def test_a_generation_that_was_never_pointed_to_is_not_overwritten(site):
    grow(site, found_image(site, "1", grey=1))
    (site.store / "generation-000002").mkdir()  # renamed into place, then killed
    assert grow(site, found_image(site, "2", grey=2)).generation == 3
    assert greys(store_of(site)) == [1, 2]
