"""The site card: what leaves a hospital before the first round, and what does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.card import site_card
from client.hospital import card_of
from client.policy import SitePolicy
from client.settings import new_site
from multimix.contract.messages import SiteCard, canonical_json
from multimix.data.decode import Geometry, Preprocessing
from multimix.data.hospitals import Hospital
from multimix.data.sampling import Budget
from multimix.data.store import Store, open_store
from multimix.data.store_writer import StoreRow, write_store
from multimix.errors import Refused, SiteError

SIZE = 32
LEFT = np.zeros((SIZE, SIZE), np.uint8)
LEFT[:, : SIZE // 2] = 1


@dataclass(frozen=True)
class Film:
    patient: str
    label: str = "unknown"
    mask: bool = False
    convention: str = "mediastinum_excluded"
    split: str = "train"
    view: str = "PA"
    side: int = 600
    grey: int = 100


def write(folder: Path, films: Sequence[Film]) -> Store:
    rows = [
        StoreRow(
            image=np.full((SIZE, SIZE), film.grey, np.uint8),
            mask=LEFT if film.mask else None,
            content_hash=f"image {number}",
            mask_hash=f"mask {number}" if film.mask else "",
            patient=film.patient,
            source="",
            site="",
            view=film.view,
            label=film.label,
            mask_convention=film.convention if film.mask else "",
            split=film.split,
            geometry=Geometry(film.side, 500, 1.0, 1.0, 0, 0),
        )
        for number, film in enumerate(films)
    ]
    write_store(folder, rows, preprocessing=Preprocessing(SIZE))
    return open_store(folder)


def card(folder: Path, films: Sequence[Film], minimum: int = 10, *, role: str = "train", **policy) -> SiteCard:
    store = write(folder, films)
    hospital = Hospital("site", role, store.path, np.arange(len(store)), Budget(), None, 0)
    return site_card(hospital, store, SitePolicy(minimum_cohort=minimum, **policy), device="cpu", synthetic=False)


def many(count: int, start: int = 0, **fields) -> list[Film]:
    """One film of each of `count` patients."""
    return [Film(f"p{start + number}", **fields) for number in range(count)]


def test_with_a_minimum_of_one_the_card_is_the_truth(tmp_path):
    films = [
        *many(3, label="normal", mask=True),
        *many(2, 3, label="pneumonia", view="AP", side=1500, grey=10),
        *many(1, 5, split="test", view="", side=3000, grey=250),
        Film("p0", view="AP", label="normal"),
    ]
    found = card(tmp_path / "s", films, 1)
    assert (found.images, found.patients, found.training_patients) == (7, 6, 5)
    assert found.labelled_patients.model_dump() == {"normal": 3, "pneumonia": 2}
    assert found.masked_patients == {"mediastinum_excluded": 3}
    assert found.histograms["view"] == {"PA": 2, "AP": 2, "unknown": 1, "mixed": 1}
    assert found.histograms["images"] == {"0-1": 5, "2-3": 1, "4-9": 0, "10-": 0}
    assert found.histograms["longest_side"] == {"0-511": 0, "512-1023": 3, "1024-2047": 2, "2048-": 1}
    assert {name: count for name, count in found.histograms["brightness"].items() if count} == {
        "0-31": 2,
        "96-127": 3,
        "224-": 1,
    }
    assert found.withheld == ()


def test_a_site_smaller_than_the_minimum_says_nothing(tmp_path):
    with pytest.raises(Refused) as caught:
        card(tmp_path / "s", many(9), 10)
    assert (caught.value.reason, caught.value.detail) == ("cohort_too_small", "")


def test_patients_count_and_not_images(tmp_path):
    with pytest.raises(Refused, match="cohort_too_small"):
        card(tmp_path / "s", many(9) + many(9) + many(9), 10)


def test_a_small_cell_is_named_and_hidden_with_the_smallest_large_one(tmp_path):
    films = [*many(30), *many(12, 30, view="AP"), *many(3, 42, view="frontal")]
    found = card(tmp_path / "s", films)
    assert found.histograms["view"] == {"PA": 30, "mixed": 0}
    assert found.withheld == ("view.AP", "view.frontal")


def test_two_small_cells_are_hidden_with_a_large_one_though_their_sum_is_large(tmp_path):
    found = card(tmp_path / "s", [*many(30), *many(9, 30, view="AP"), *many(9, 39, view="frontal")])
    assert found.histograms["view"] == {"mixed": 0}
    assert found.withheld == ("view.AP", "view.PA", "view.frontal")


@pytest.mark.parametrize("view", ["Doe John", "DOE", "1940-03-05", "x" * 99, "../../etc"])
def test_a_view_that_is_no_view_never_leaves(tmp_path, view):
    found = card(tmp_path / "s", [*many(20), *many(20, 20, view=view)])
    assert found.histograms["view"] == {"PA": 20, "other": 20, "mixed": 0}
    assert view not in canonical_json(found)


def test_a_supine_view_counts_as_ap(tmp_path):
    found = card(tmp_path / "s", [*many(20, view="AP"), *many(20, 20, view="AP Supine")])
    assert found.histograms["view"] == {"AP": 40, "mixed": 0}


def test_the_few_with_several_images_do_not_follow_from_the_number_of_images(tmp_path):
    found = card(tmp_path / "s", [*many(30), *many(3)])
    assert "images.2-3" in found.withheld
    assert found.images == found.patients == 30
    assert card(tmp_path / "t", [*many(30), *many(10)]).images == 40


def test_training_patients_do_not_give_away_the_few_of_the_other_splits(tmp_path):
    found = card(tmp_path / "s", [*many(30), *many(3, 30, split="test")])
    assert (found.patients, found.training_patients) == (33, 23)  # 10 are left, not 3


def test_a_small_class_is_not_counted(tmp_path):
    found = card(tmp_path / "s", [*many(20, label="normal"), *many(4, 20, label="pneumonia"), *many(16, 24)])
    assert found.labelled_patients.model_dump() == {"normal": 20, "pneumonia": 0}


def test_a_few_patients_without_label_do_not_follow_from_the_classes(tmp_path):
    films = [*many(20, label="normal"), *many(15, 20, label="pneumonia"), *many(3, 35)]
    found = card(tmp_path / "s", films)
    assert found.labelled_patients.model_dump() == {"normal": 13, "pneumonia": 15}  # 38 - 28 are 10


def test_a_convention_of_few_masks_is_not_even_named(tmp_path):
    films = [*many(15, mask=True), *many(4, 15, mask=True, convention="behind_heart"), *many(15, 19)]
    found = card(tmp_path / "s", films)
    assert found.masked_patients == {"mediastinum_excluded": 15}
    assert found.conventions == ("mediastinum_excluded",)
    assert "behind_heart" not in canonical_json(found)


def test_a_convention_of_test_patients_is_named_and_not_counted(tmp_path):
    films = [*many(15), *many(12, 15, mask=True, split="test", convention="behind_heart")]
    found = card(tmp_path / "s", films)
    assert (found.masked_patients, found.conventions) == ({}, ("behind_heart",))


def test_a_mean_mask_needs_the_minimum_of_patients_and_the_policy(tmp_path):
    expected = (np.tile(np.arange(32) < 16, (32, 1)) * 255).ravel().tolist()
    found = card(tmp_path / "enough", [*many(10, mask=True), *many(10, 10)])
    assert list(found.mean_masks["mediastinum_excluded"]) == expected
    assert card(tmp_path / "few", [*many(9, mask=True), *many(11, 9)]).mean_masks == {}
    assert card(tmp_path / "no", [*many(10, mask=True), *many(10, 10)], release_mean_mask=False).mean_masks == {}


def test_masks_of_one_patient_count_once(tmp_path):
    assert card(tmp_path / "s", [*many(20), *[Film("p0", mask=True)] * 30]).mean_masks == {}


def test_a_held_out_site_trains_on_nobody(tmp_path):
    found = card(tmp_path / "s", many(20, label="normal", mask=True), role="held-out")
    assert (found.role, found.training_patients, found.masked_patients) == ("held-out", 0, {})
    assert found.labelled_patients.model_dump() == {"normal": 0, "pneumonia": 0}
    assert found.conventions == ("mediastinum_excluded",)


def test_a_patient_with_two_views_is_mixed_and_counted_once(tmp_path):
    found = card(tmp_path / "s", [*many(20), *many(10, view="AP")])
    assert found.histograms["view"] == {"AP": 0, "PA": 10, "mixed": 10}


def test_the_card_names_no_patient(tmp_path):
    text = canonical_json(card(tmp_path / "folder", [Film(f"pseudonym-{number}") for number in range(20)]))
    assert "pseudonym" not in text
    assert "folder" not in text


def test_the_fingerprint_is_of_labels_masks_splits_and_pixels_and_of_nothing_else(tmp_path):
    films = many(12)
    plain, again = (card(tmp_path / name, films).data_fingerprint for name in "ab")
    relabelled = card(tmp_path / "c", [Film("p0", label="normal"), *films[1:]]).data_fingerprint
    split = card(tmp_path / "d", [Film("p0", split="test"), *films[1:]]).data_fingerprint
    masked = card(tmp_path / "e", [Film("p0", mask=True), *films[1:]]).data_fingerprint
    assert plain == again
    assert len({plain, relabelled, split, masked}) == 4


film = st.builds(
    Film,
    patient=st.sampled_from([f"p{number}" for number in range(25)]),
    label=st.sampled_from(["normal", "pneumonia", "other", "unknown"]),
    mask=st.booleans(),
    convention=st.sampled_from(["mediastinum_excluded", "behind_heart"]),
    view=st.sampled_from(["PA", "AP", "frontal", "", "odd"]),
    side=st.sampled_from([500, 600, 1500, 3000]),
    grey=st.integers(0, 255),
)


@settings(max_examples=40)
@given(films=st.lists(film, min_size=10, max_size=80), minimum=st.integers(2, 8), seed=st.integers(0, 99))
def test_whatever_a_site_holds_its_card_shows_no_small_number_nor_a_small_difference(
    tmp_path_factory, films, minimum, seed
):
    everyone = {film.patient for film in films}
    split = {name: ("train", "test")[(number * 7 + seed) % 3 == 0] for number, name in enumerate(sorted(everyone))}
    films = [Film(**{**vars(each), "split": split[each.patient]}) for each in films]
    if len(everyone) < minimum:
        return
    found = card(tmp_path_factory.mktemp("card") / "s", films, minimum)
    assert found.patients == len(everyone)
    assert found.training_patients <= sum(name == "train" for name in split.values())
    counts = [
        found.training_patients,
        found.patients - found.training_patients,
        found.images - found.patients,
        *found.labelled_patients.model_dump().values(),
        *found.masked_patients.values(),
    ]
    for table, cells in found.histograms.items():
        hidden = [name for name in found.withheld if name.startswith(f"{table}.")]
        assert not {f"{table}.{name}" for name in cells} & set(hidden)
        rest = found.patients - sum(cells.values())
        assert bool(rest) == bool(hidden)
        counts += [*cells.values(), rest]
    assert all(count == 0 or count >= minimum for count in counts)


def test_the_card_of_a_site_without_a_store_says_what_to_do(tmp_path):
    site = new_site(tmp_path / "secret-place", "north", image_size=SIZE)
    with pytest.raises(SiteError, match="Take images in first") as caught:
        card_of(site, device="cpu")
    assert caught.value.reason == "store_missing"
    assert "secret-place" not in str(caught.value)


def test_the_card_of_a_site_is_that_of_its_store_under_its_policy(tmp_path):
    site = new_site(tmp_path / "north", "north", image_size=SIZE)
    write(site.store, [*many(30), *many(3, 30, view="AP")])
    found = card_of(site, device="cpu")
    assert (found.site, found.role, found.synthetic, found.patients) == ("north", "train", False, 33)
    assert found.withheld == ("view.AP", "view.PA")  # the template's minimum is 10
