"""Phantoms: synthetic radiographs that behave like radiographs, from a generator that is a pure function."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from multimix.data import phantom_anatomy as anatomy
from multimix.data.phantom import (
    MANIFEST_COLUMNS,
    Phantom,
    PhantomHospital,
    default_hospitals,
    draw_phantom,
    write_phantoms,
)
from multimix.errors import InputError

PLAIN = PhantomHospital(name="plain")
SICK = PLAIN.model_copy(update={"prevalence": 1.0})
WELL = PLAIN.model_copy(update={"prevalence": 0.0})


def chest_of(patient: int) -> tuple[anatomy.Film, anatomy.Chest]:
    rng = np.random.default_rng(patient)
    build = anatomy.sample_build(rng, habitus=rng.uniform(-1, 1))
    film = anatomy.film_of(build, height=96, width=96, field_of_view=1.1)
    return film, anatomy.draw_chest(build, film, rng)


@settings(max_examples=15, deadline=None)
@given(patient=st.integers(0, 10**6), seed=st.integers(0, 10**6), size=st.sampled_from([32, 48, 65]))
def test_equal_arguments_give_equal_phantoms(patient: int, seed: int, size: int) -> None:
    first = draw_phantom(PLAIN, patient=patient, seed=seed, image_size=size)
    again = draw_phantom(PLAIN, patient=patient, seed=seed, image_size=size)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert first.pneumonia == again.pneumonia


@pytest.mark.parametrize("other", [{"patient": 1}, {"seed": 1}])
def test_another_patient_or_seed_is_another_chest(other: dict[str, int]) -> None:
    first = draw_phantom(PLAIN, patient=0, seed=0, image_size=64)
    second = draw_phantom(PLAIN, **{"patient": 0, "seed": 0} | other, image_size=64)
    assert not np.array_equal(first.mask, second.mask)


def test_the_longer_side_is_the_image_size_and_the_aspect_is_the_hospitals() -> None:
    wide = draw_phantom(PLAIN.model_copy(update={"image_aspect": 1.25}), patient=0, seed=0, image_size=100)
    tall = draw_phantom(PLAIN.model_copy(update={"image_aspect": 0.8}), patient=0, seed=0, image_size=100)
    assert wide.image.shape == wide.mask.shape == (80, 100)
    assert tall.image.shape == tall.mask.shape == (100, 80)
    assert wide.image.dtype == np.uint8
    assert wide.mask.dtype == np.bool_


def test_a_larger_image_shows_the_same_chest() -> None:
    small = draw_phantom(SICK, patient=3, seed=0, image_size=64)
    large = draw_phantom(SICK, patient=3, seed=0, image_size=192)
    shrunk = np.asarray(Image.fromarray(large.image).resize((64, 64), Image.Resampling.BOX), dtype=float)
    assert np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1] > 0.97
    assert small.mask.mean() == pytest.approx(large.mask.mean(), rel=0.05)


@settings(max_examples=30, deadline=None)
@given(patient=st.integers(0, 10**6))
def test_the_lungs_lie_in_the_body_on_both_sides_of_a_free_mediastinum(patient: int) -> None:
    film, chest = chest_of(patient)
    assert not np.any(chest.lung & ~chest.body)
    assert 0.12 < chest.lung.mean() < 0.5
    assert np.any(chest.lung & (film.x < 0))
    assert np.any(chest.lung & (film.x > 0))
    assert not np.any(chest.lung & (np.abs(film.x) < 0.02)), "a mask that crosses the spine"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_right_dome_is_higher_than_the_left(seed: int) -> None:
    build = anatomy.sample_build(np.random.default_rng(seed), habitus=0)
    film = anatomy.film_of(build, height=96, width=96, field_of_view=1.1)
    dome = anatomy._diaphragm(build, film)
    assert dome[film.x < 0].min() < dome[film.x > 0].min()


def test_the_heart_takes_its_room_from_the_left_lung() -> None:
    areas = []
    for patient in range(20):
        film, chest = chest_of(patient)
        areas.append([(chest.lung & (film.x < 0)).sum(), (chest.lung & (film.x > 0)).sum()])
    right, left = np.sum(areas, axis=0)
    assert 0.7 < left / right < 0.97


def test_lungs_are_darker_than_the_mediastinum_between_them() -> None:
    for hospital, patient in itertools.product(default_hospitals(4, 0), range(5)):
        phantom = draw_phantom(hospital, patient=patient, seed=0, image_size=64)
        columns = np.arange(phantom.mask.shape[1])
        between = [
            row[(columns > columns[lung].min()) & (columns < columns[lung].max()) & ~lung].mean()
            for row, lung in zip(phantom.image, phantom.mask, strict=True)
            if 0 < lung.sum() < columns[lung].max() - columns[lung].min()
        ]
        assert phantom.image[phantom.mask].mean() < np.mean(between) - 20


def test_pneumonia_brightens_the_lung_and_leaves_the_mask_and_the_rest_alone() -> None:
    gains = []
    for patient in range(20):
        sick = draw_phantom(SICK, patient=patient, seed=0, image_size=64)
        well = draw_phantom(WELL, patient=patient, seed=0, image_size=64)
        assert (sick.pneumonia, well.pneumonia) == (True, False)
        assert np.array_equal(sick.mask, well.mask)
        change = sick.image.astype(float) - well.image
        gains.append(change[sick.mask].mean())
        assert change[sick.mask].mean() > abs(change[~sick.mask].mean())
    assert min(gains) > 0
    assert max(gains) > 5 * min(gains), "opacities of one size are too easy"


def test_side_difference_separates_pneumonia_better_than_chance_but_not_perfectly() -> None:
    def asymmetry(phantom: Phantom) -> float:
        middle = phantom.mask.shape[1] // 2
        sides = (phantom.image[:, half][phantom.mask[:, half]] for half in (np.s_[:middle], np.s_[middle:]))
        return float(abs(np.subtract(*(side.mean() for side in sides))))

    phantoms = [draw_phantom(PLAIN, patient=patient, seed=5, image_size=48) for patient in range(150)]
    sick = np.array([asymmetry(p) for p in phantoms if p.pneumonia])
    well = np.array([asymmetry(p) for p in phantoms if not p.pneumonia])
    auroc = (sick[:, None] > well[None, :]).mean()  # Mann-Whitney; ties have probability 0
    assert 0.65 < auroc < 0.97


def test_default_hospitals_differ_from_one_another_in_mean_intensity() -> None:
    means = [
        np.mean([draw_phantom(h, patient=i, seed=0, image_size=48).image.mean() for i in range(25)])
        for h in default_hospitals(3, 0)
    ]
    assert all(abs(a - b) > 5 for a, b in itertools.combinations(means, 2))


def test_more_exposure_is_a_darker_film() -> None:
    dark = draw_phantom(WELL.model_copy(update={"exposure": 2.0}), patient=0, seed=0, image_size=48)
    bright = draw_phantom(WELL.model_copy(update={"exposure": 0.5}), patient=0, seed=0, image_size=48)
    assert dark.image.mean() < bright.image.mean() - 20


def test_a_marker_shows_in_its_own_corner() -> None:
    def corner_change(marker: str, half: slice) -> bool:
        marked = draw_phantom(WELL.model_copy(update={"marker": marker}), patient=0, seed=0, image_size=96)
        plain = draw_phantom(WELL, patient=0, seed=0, image_size=96)
        return bool(np.any(marked.image[:24, half] != plain.image[:24, half]))

    right, left = np.s_[:48], np.s_[48:]  # of the patient, who faces the viewer
    assert [corner_change(m, left) for m in ("L", "R", "dot")] == [True, False, False]
    assert [corner_change(m, right) for m in ("L", "R", "dot")] == [False, True, True]


@given(count=st.integers(1, 26), seed=st.integers(0, 2**31))
def test_default_hospitals_have_their_own_names_and_longer_lists_begin_with_shorter_ones(count: int, seed: int) -> None:
    hospitals = default_hospitals(count, seed)
    assert [h.name for h in hospitals[:3]] == ["phantom-a", "phantom-b", "phantom-c"][:count]
    assert len({h.name for h in hospitals}) == count
    assert default_hospitals(26, seed)[:count] == hospitals


@pytest.mark.parametrize("count", [0, 27])
def test_a_number_of_hospitals_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(InputError, match="1 to 26"):
        default_hospitals(count, 0)


def test_a_hospital_refuses_unknown_fields_and_impossible_values() -> None:
    for wrong in ({"colour": 1}, {"prevalence": 1.2}, {"name": "../up"}, {"marker": "X"}):
        with pytest.raises(ValidationError):
            PhantomHospital(**{"name": "a"} | wrong)


def test_an_image_too_small_for_a_chest_is_refused() -> None:
    with pytest.raises(InputError, match="32 at least"):
        draw_phantom(PLAIN, patient=0, seed=0, image_size=31)


@pytest.mark.parametrize("prevalence", [0.0, 0.1, 0.35, 1.0])
def test_prevalence_is_met_closely_even_by_forty_patients(prevalence: float) -> None:
    hospital = PLAIN.model_copy(update={"prevalence": prevalence})
    cases = sum(draw_phantom(hospital, patient=i, seed=2, image_size=32).pneumonia for i in range(40))
    assert cases == pytest.approx(40 * prevalence, abs=0 if prevalence in (0, 1) else 2)


def read_rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_manifest_has_every_column_of_every_patient_and_says_synthetic(tmp_path: Path) -> None:
    manifest = write_phantoms(tmp_path / "out", hospitals=2, patients=3, image_size=32, seed=0)
    rows = read_rows(manifest)
    assert tuple(rows[0]) == MANIFEST_COLUMNS
    assert len(rows) == len({row["patient_id"] for row in rows}) == 6
    assert all(all(row.values()) for row in rows)
    fixed = ("site", "finding", "licence", "view", "mask_origin")
    assert {tuple(row[c] for c in fixed) for row in rows} == {
        (
            "SYNTHETIC",
            "synthetic phantom",
            "synthetic, Apache-2.0",
            "PA",
            "synthetic phantom, excludes mediastinum",
        )
    }


def test_the_files_hold_what_draw_phantom_draws(tmp_path: Path) -> None:
    manifest = write_phantoms(tmp_path / "out", hospitals=2, patients=2, image_size=40, seed=9)
    drawn = [draw_phantom(h, patient=i, seed=9, image_size=40) for h in default_hospitals(2, 9) for i in range(2)]
    for row, phantom in zip(read_rows(manifest), drawn, strict=True):
        with (
            Image.open(manifest.parent / row["image"]) as image,
            Image.open(manifest.parent / row["mask"]) as mask,
        ):
            assert (image.mode, mask.mode) == ("L", "1")
            assert "synthetic" in image.info["Description"]
            assert np.array_equal(np.asarray(image), phantom.image)
            assert np.array_equal(np.asarray(mask), phantom.mask)
        assert row["label"] == ("pneumonia" if phantom.pneumonia else "normal")


def test_a_second_run_with_the_same_parameters_reuses_the_folder(tmp_path: Path) -> None:
    wanted = {"hospitals": 1, "patients": 2, "image_size": 32, "seed": 0}
    manifest = write_phantoms(tmp_path / "out", **wanted)
    before = {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")}
    assert write_phantoms(tmp_path / "out", **wanted) == manifest
    assert {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")} == before


def test_a_folder_with_anything_else_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_phantoms(out, hospitals=1, patients=2, image_size=32, seed=0)
    before = (out / "manifest.csv").read_bytes()
    with pytest.raises(InputError, match="something other"):
        write_phantoms(out, hospitals=1, patients=2, image_size=32, seed=1)
    assert (out / "manifest.csv").read_bytes() == before


def test_a_folder_with_a_lost_image_is_not_reused(tmp_path: Path) -> None:
    manifest = write_phantoms(tmp_path / "out", hospitals=1, patients=2, image_size=32, seed=0)
    (manifest.parent / read_rows(manifest)[0]["image"]).unlink()
    with pytest.raises(InputError, match="missing"):
        write_phantoms(tmp_path / "out", hospitals=1, patients=2, image_size=32, seed=0)


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_phantoms(tmp_path / "out", hospitals=1, patients=2, image_size=8, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_records_its_parameters(tmp_path: Path) -> None:
    manifest = write_phantoms(tmp_path / "out", hospitals=1, patients=2, image_size=32, seed=4)
    recorded = json.loads((manifest.parent / "phantoms.json").read_text())
    assert recorded["synthetic"] is True
    assert {k: recorded[k] for k in ("hospitals", "patients", "image_size", "seed")} == {
        "hospitals": 1,
        "patients": 2,
        "image_size": 32,
        "seed": 4,
    }
