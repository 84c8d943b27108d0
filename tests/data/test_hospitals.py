"""Who owns which images: sources, sites, held-out hospitals, simulated sites, phantoms."""

import csv
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from multimix.data.hospitals import FederationData, Hospital, _dealt, hospitals
from multimix.data.sampling import patients
from multimix.errors import ManifestError, RunConfigError

REAL = Path(os.environ.get("MULTIMIX_DATA", Path(__file__).parents[3] / "shared" / "data"))
HEART, OUT = "behind_heart", "mediastinum_excluded"
SOURCES = {"alpha": ("includes area behind heart", 20), "beta": ("expert", 20), "gamma": ("expert", 10)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three sources of 20, 20 and 10 patients with two images each, all with masks, half pneumonia."""
    folder = tmp_path_factory.mktemp("data")
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(folder / "mask.png")
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "mask", "source", "site", "label", "patient_id", "mask_origin"])
        for source, (origin, count) in SOURCES.items():
            for i in range(2 * count):
                name = f"{source}{i}.png"
                shade = np.full((16, 16), i, np.uint8)
                shade[0] = list(SOURCES).index(source)  # no two patients have equal pixels
                Image.fromarray(shade).save(folder / name)
                label = ("normal", "pneumonia")[i // 2 % 2]
                rows.writerow([name, "mask.png", source, f"ward {source[0]}", label, f"P{i // 2}", origin])
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def federation(data: Path, cache: Path, **fields: object) -> dict[str, Hospital]:
    found = hospitals(FederationData(data=data, image_size=16, **fields), cache=cache)
    assert [hospital.name for hospital in found] == sorted(hospital.name for hospital in found)
    return {hospital.name: hospital for hospital in found}


def split_rows(hospital: Hospital) -> list[set[int]]:
    store = hospital.store()
    return [set(hospital.evaluation_rows(store, split)) for split in ("train", "validation", "test")]


def test_every_source_is_a_hospital_with_its_own_rows(data, cache):
    found = federation(data, cache)
    assert list(found) == list(SOURCES)
    store = found["beta"].store()
    assert {hospital.role for hospital in found.values()} == {"train"}
    assert set(store.source[found["beta"].rows]) == {"beta"}
    assert len(found["beta"].rows) == 40


def test_the_splits_of_a_hospital_partition_its_rows(data, cache):
    beta = federation(data, cache)["beta"]
    train, validation, test = split_rows(beta)
    # 20 patients of two images: 14, 2 and 4 patients.
    assert [len(train), len(validation), len(test)] == [28, 4, 8]
    assert train | validation | test == set(beta.rows)


def test_a_held_out_hospital_only_tests(data, cache):
    gamma = federation(data, cache, hold_out=("gamma",))["gamma"]
    assert gamma.role == "held-out"
    assert split_rows(gamma) == [set(), set(), set(gamma.rows)]
    pools = gamma.pools(gamma.store(), None)
    assert len(pools.labelled_classification) + len(pools.unlabelled_segmentation) == 0


def test_the_site_column_may_name_the_hospitals(data, cache):
    assert list(federation(data, cache, site_column="site")) == ["ward-a", "ward-b", "ward-g"]


def test_budgets_reach_the_pools(data, cache):
    found = federation(data, cache, labels="4,beta=6", masks="3", mask_convention="all")
    sizes = {}
    for name, hospital in found.items():
        pools = hospital.pools(hospital.store(), None)
        sizes[name] = (len(pools.labelled_classification), len(pools.labelled_segmentation))
    assert sizes == {"alpha": (4, 3), "beta": (6, 3), "gamma": (4, 3)}


@pytest.mark.parametrize(
    ("fields", "convention"),
    [
        ({"hold_out": ("alpha",)}, OUT),  # the test's convention cannot be trained: the most frequent
        ({"hold_out": ("gamma",)}, OUT),
        ({}, OUT),  # beta and gamma have 60 masks, alpha 40
        ({"mask_convention": HEART}, HEART),
    ],
)
def test_masks_of_one_convention_are_trained_on(data, cache, fields, convention):
    found = federation(data, cache, **fields)
    assert {hospital.conventions for hospital in found.values()} == {frozenset({convention})}


def test_auto_takes_the_convention_of_the_held_out_hospital_though_rarer(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(folder / "m.png")
    lines = ["image,mask,source,patient_id,mask_origin"]
    for i, (source, origin) in enumerate([("a", "x"), ("a", "y"), ("b", "behind heart"), ("c", "behind heart")]):
        Image.fromarray(np.full((16, 16), i, np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,m.png,{source},P{i},{origin}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    found = federation(folder, tmp_path / "cache", hold_out=("c",))
    assert found["a"].conventions == frozenset({HEART})


def test_all_conventions_are_accepted_when_asked(data, cache):
    assert federation(data, cache, mask_convention="all")["alpha"].conventions is None


@pytest.mark.parametrize(
    ("fields", "reason", "named"),
    [
        ({"hold_out": ("delta",)}, "hospital_unknown", "'delta'.*alpha, beta, gamma"),
        ({"site_column": "ward"}, "site_column_unknown", "'ward'.*site, source"),
        ({"mask_convention": "heart"}, "mask_convention_unknown", f"'heart'.*{HEART}, {OUT}"),
        ({"hold_out": tuple(SOURCES)}, "no_hospital_trains", "at least one"),
        ({"labels": "gamma=2", "hold_out": ("gamma",)}, "hospital_unknown", "'gamma'.*alpha, beta"),
        ({"dirichlet_sites": 400}, "dirichlet_sites_too_many", "400"),
    ],
)
def test_a_name_that_does_not_fit_the_data_is_refused_with_the_ones_that_do(data, cache, fields, reason, named):
    with pytest.raises(RunConfigError, match=named) as caught:
        federation(data, cache, **fields)
    assert caught.value.reason == reason


@pytest.mark.parametrize("fields", [{"labels": "29"}, {"masks": "29"}, {"labels": "gamma=15"}])
def test_a_budget_above_every_hospital_is_refused(data, cache, fields):
    # alpha and beta have 14 train patients of two images = 28; gamma 7 of two = 14.
    with pytest.raises(ManifestError) as caught:
        federation(data, cache, mask_convention="all", **fields)
    assert caught.value.reason == "budget_too_large"


def test_a_budget_is_checked_when_the_configuration_is_read():
    with pytest.raises(RunConfigError, match="200,jsrt=40"):
        FederationData(labels="plenty")


def test_an_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="labls"):
        FederationData(labls="200")


def test_a_hospital_without_training_images_is_refused_by_name(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for shade, name in enumerate(("a.png", "b.png")):
        Image.fromarray(np.full((16, 16), shade, np.uint8)).save(folder / name)
    (folder / "manifest.csv").write_text("image,patient_id,source,split\na.png,P,full,train\nb.png,Q,hollow,test\n")
    with pytest.raises(ManifestError, match="hollow") as caught:
        federation(folder, tmp_path / "cache")
    assert caught.value.reason == "site_empty"


def test_small_sites_and_images_without_a_site_are_one_hospital_of_their_source(tmp_path):
    rows = ["image,patient_id,source,site"]
    sites = ["St. Anna, Köln"] * 10 + ["Myongji Hospital"] * 3 + [""] * 9
    for number, site in enumerate(sites):
        Image.fromarray(np.full((16, 16), number, np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f'{number}.png,P{number},cohen,"{site}"')
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    found = federation(tmp_path, tmp_path / "cache", site_column="site")
    assert {name: len(hospital.rows) for name, hospital in found.items()} == {"St.-Anna-K-ln": 10, "cohen-others": 12}


def test_simulated_sites_share_the_training_patients_and_split_them_anew(data, cache):
    trained = federation(data, cache, hold_out=("gamma",))
    pooled = split_rows(trained["alpha"])[0] | split_rows(trained["beta"])[0]
    found = federation(data, cache, hold_out=("gamma",), dirichlet_sites=4)
    sites = {name: hospital for name, hospital in found.items() if name != "gamma"}
    assert list(sites) == ["site-001", "site-002", "site-003", "site-004"]
    rows = [row for hospital in sites.values() for row in hospital.rows]
    assert len(rows) == len(set(rows))
    assert set(rows) == pooled
    for hospital in sites.values():
        assert set.union(*split_rows(hospital)) == set(hospital.rows)


def test_a_patient_of_a_simulated_site_is_in_one_split_of_one_site(data, cache):
    found = federation(data, cache, dirichlet_sites=5, dirichlet_alpha=0.2)
    store = found["site-001"].store()
    parts = [np.array(sorted(part), np.int64) for each in found.values() for part in split_rows(each)]
    together = np.concatenate(parts)
    assert sum(patients(store, part) for part in parts) == patients(store, together)


def test_simulated_sites_have_the_pools_of_their_own_train_split(data, cache):
    found = federation(data, cache, dirichlet_sites=3)
    for hospital in found.values():
        pools = hospital.pools(hospital.store(), None)
        used = {*pools.labelled_classification, *pools.unlabelled_classification}
        assert used == split_rows(hospital)[0]


def pool_rows(hospital: Hospital, convention: str | None = None) -> list[list[int]]:
    pools = hospital.pools(hospital.store(), convention)
    return [
        pools.labelled_classification.tolist(),
        pools.unlabelled_classification.tolist(),
        pools.labelled_segmentation.tolist(),
        pools.unlabelled_segmentation.tolist(),
    ]


def test_a_pooled_site_has_the_images_and_splits_of_all_that_train(data, cache):
    apart = federation(data, cache, hold_out=("gamma",))
    found = federation(data, cache, hold_out=("gamma",), pooled=True)
    assert {name: hospital.role for name, hospital in found.items()} == {"gamma": "held-out", "pooled": "train"}
    assert found["pooled"].rows.tolist() == sorted([*apart["alpha"].rows, *apart["beta"].rows])
    both = zip(split_rows(apart["alpha"]), split_rows(apart["beta"]), strict=True)
    assert split_rows(found["pooled"]) == [one | other for one, other in both]


@pytest.mark.parametrize("convention", [None, HEART, OUT])
def test_a_pooled_site_has_the_labels_and_masks_that_its_members_have_by_their_budgets(data, cache, convention):
    fields = {"hold_out": ("gamma",), "labels": "4,beta=6", "masks": "3", "mask_convention": "all"}
    apart = federation(data, cache, **fields)
    pooled = federation(data, cache, **fields, pooled=True)["pooled"]
    assert [member.name for member in pooled.members] == ["alpha", "beta"]
    parts = [pool_rows(apart[name], convention) for name in ("alpha", "beta")]
    assert pool_rows(pooled, convention) == [sorted(one + other) for one, other in zip(*parts, strict=True)]
    labelled, _, masked, _ = pool_rows(pooled, convention)
    # alpha's masks are drawn with the heart, beta's without.
    assert (len(labelled), len(masked)) == (10, 6 if convention is None else 3)


def test_a_held_out_hospital_is_the_same_beside_a_pooled_site(data, cache):
    apart, together = (federation(data, cache, hold_out=("gamma",), pooled=pooled)["gamma"] for pooled in (False, True))
    assert split_rows(apart) == split_rows(together)
    assert together.members == ()


def test_simulated_sites_can_be_pooled_with_the_splits_that_each_made(data, cache):
    sites = federation(data, cache, dirichlet_sites=3)
    pooled = federation(data, cache, dirichlet_sites=3, pooled=True)["pooled"]
    parts = [split_rows(hospital) for hospital in sites.values()]
    assert split_rows(pooled) == [set.union(*rows) for rows in zip(*parts, strict=True)]


def test_a_hospital_that_is_not_pooled_has_no_members(data, cache):
    assert {hospital.members for hospital in federation(data, cache).values()} == {()}


labels = st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=1, max_size=60).map(lambda each: np.array(each, np.int8))


@given(labels=labels, sites=st.integers(1, 12), alpha=st.floats(0.01, 100), seed=st.integers(0, 9))
def test_every_simulated_site_gets_a_patient(labels, sites, alpha, seed):
    sites = min(sites, len(labels))
    owner = _dealt(labels, sites, alpha, seed)
    assert sorted(set(owner.tolist())) == list(range(sites))


def test_a_small_alpha_skews_labels_and_a_large_one_does_not():
    labels = np.repeat(np.array([0, 1], np.int8), 500)

    def skew(alpha: float) -> float:
        owner = _dealt(labels, 4, alpha, seed=0)
        shares = [[(owner[labels == label] == site).mean() for site in range(4)] for label in (0, 1)]
        return float(np.abs(np.array(shares) - 0.25).max())

    assert skew(1000) < 0.05
    assert skew(0.1) > 0.3


def test_the_store_is_built_once(data, cache):
    first = federation(data, cache)["alpha"].store_path
    stamp = (first / "images.u8").stat().st_mtime_ns
    again = federation(data, cache, labels="2")["alpha"].store_path
    assert again == first
    assert (again / "images.u8").stat().st_mtime_ns == stamp


def test_another_seed_size_or_mask_file_gives_another_store(data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    fields = [{}, {"seed": 1}, {"fit": "stretch"}]
    paths = [federation(folder, tmp_path / "c", **each)["alpha"].store_path for each in fields]
    half = np.full((16, 16), 255, np.uint8)
    half[:8] = 0
    Image.fromarray(half).save(folder / "mask.png")
    paths.append(federation(folder, tmp_path / "c")["alpha"].store_path)
    assert len(set(paths)) == 4


def test_a_damaged_cached_store_is_built_again(data, tmp_path):
    path = federation(data, tmp_path)["alpha"].store_path
    os.truncate(path / "images.u8", 10)
    assert len(federation(data, tmp_path)["alpha"].store()) == 100


def _count_builds(data: Path, cache: Path, builds: "multiprocessing.Queue[int]") -> None:
    seen: list[int] = []
    config = FederationData(data=data, image_size=16)
    hospitals(config, cache=cache, progress=lambda done, total: seen.append(done))
    builds.put(len(seen))


def test_two_processes_at_once_build_one_store(data, tmp_path):
    context = multiprocessing.get_context("fork")
    builds = context.Queue()
    both = [context.Process(target=_count_builds, args=(data, tmp_path, builds)) for _ in range(2)]
    for process in both:
        process.start()
    counts = sorted(builds.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    assert counts == [0, 100]


def test_phantoms_stand_in_when_there_are_no_data(tmp_path):
    config = FederationData(phantom_hospitals=2, phantom_patients=4, image_size=32)
    found = hospitals(config, cache=tmp_path)
    assert [len(hospital.rows) for hospital in found] == [4, 4]


def test_importing_hospitals_and_the_manifest_needs_no_torch():
    code = "import multimix.data.hospitals, multimix.data.manifest, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.data
def test_real_sources_hold_out_montgomery(tmp_path):
    if not (REAL / "cxr" / "manifest.csv").exists():
        pytest.skip(f"no real radiographs in {REAL}; set MULTIMIX_DATA")
    config = FederationData(data=REAL / "cxr", hold_out=("montgomery",), labels="200", masks="50", image_size=32)
    found = {hospital.name: hospital for hospital in hospitals(config, cache=tmp_path)}
    store = found["jsrt"].store()
    # Labels: 2 classes of 100 where both exist; masks: the held-out convention, which kermany does not have.
    kermany, jsrt = (found[name].pools(store, "mediastinum_excluded") for name in ("kermany", "jsrt"))
    assert np.bincount(store.label[kermany.labelled_classification]).tolist() == [100, 100]
    assert (len(kermany.labelled_segmentation), len(jsrt.labelled_segmentation)) == (0, 50)
    assert len(found["montgomery"].evaluation_rows(store, "test")) == 111


@pytest.fixture
def site_folder(data, cache, tmp_path) -> Path:
    """A folder of one site folder, as an intake leaves it."""
    folder = tmp_path / "sites" / "north"
    (folder / "store").mkdir(parents=True)
    (folder / "store" / "current").symlink_to(federation(data, cache)["alpha"].store_path)
    (folder / "site.toml").write_text('name = "north"\n# [population]\n')
    return folder


def test_a_site_folder_without_a_population_is_a_hospital_of_a_simulation(site_folder, cache):
    assert list(federation(site_folder.parent, cache)) == ["north"]
    (site_folder / "site.toml").unlink()
    assert list(federation(site_folder.parent, cache)) == ["north"]


def test_site_folders_cannot_be_pooled(site_folder, data, cache):
    south = site_folder.parent / "south"
    (south / "store").mkdir(parents=True)
    other = federation(data, cache, seed=1)["alpha"].store_path
    (south / "store" / "current").symlink_to(other)
    with pytest.raises(RunConfigError, match="Leave pooled at false") as caught:
        federation(site_folder.parent, cache, pooled=True)
    assert caught.value.reason == "pooled"


PRIVATE_FOLDERS = {
    "a population": lambda folder: (folder / "site.toml").write_text("[population]\ndeclared_patients = 500\n"),
    "an empty population": lambda folder: (folder / "site.toml").write_text("population = {}\n"),
    "a ledger": lambda folder: (folder / "ledger").mkdir(),
    "unreadable settings": lambda folder: (folder / "site.toml").write_bytes(b"name = \xff"),
    "damaged settings": lambda folder: (folder / "site.toml").write_text("name = "),
}


@pytest.mark.parametrize("change", PRIVATE_FOLDERS.values(), ids=PRIVATE_FOLDERS)
def test_a_simulation_does_not_train_past_the_ledger_of_a_site(site_folder, cache, change):
    change(site_folder)
    with pytest.raises(RunConfigError, match="^north ") as caught:
        federation(site_folder.parent, cache)
    assert caught.value.reason == "site_is_private"
    assert "/" not in str(caught.value)


def test_a_ledger_without_settings_keeps_a_simulation_away_too(site_folder, cache):
    (site_folder / "site.toml").unlink()
    (site_folder / "ledger").mkdir()
    with pytest.raises(RunConfigError, match="past the ledger"):
        federation(site_folder.parent, cache)
