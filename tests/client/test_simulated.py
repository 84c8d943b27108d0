"""Hospitals of a simulation: one node each, from the run configuration alone."""

import shutil

import pytest
from tiny_hospitals import EXPERT, HOSPITALS, write_radiographs

from client.simulated import SIMULATION_POLICY, simulated_site
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import public_text, simulation_key
from multimix.data.simulation import federation_data, simulated_hospitals
from multimix.errors import InputError, ManifestError, RunConfigError


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("simulated")
    write_radiographs(folder / "data")
    return RunConfig(data=str(folder / "data"), cache=str(folder / "cache"), image_size=32, hold_out="outside", seed=3)


def changed(config: RunConfig, **fields: object) -> RunConfig:
    return RunConfig(**(config.model_dump() | fields))


def test_the_i_th_node_owns_the_i_th_hospital_by_name(config):
    sites = [simulated_site(config, partition=i, nodes=len(HOSPITALS)) for i in range(len(HOSPITALS))]
    assert [site.hospital.name for site in sites] == sorted(HOSPITALS)
    assert [site.hospital.name for site in sites if site.hospital.role == "held-out"] == ["outside"]


def test_nodes_and_hospitals_must_be_as_many(config):
    with pytest.raises(RunConfigError, match=r"2 nodes for 7 hospitals .*num-supernodes=7") as caught:
        simulated_site(config, partition=0, nodes=2)
    assert caught.value.reason == "nodes_and_hospitals"


def test_a_simulated_site_trusts_the_key_of_its_seed_and_says_whether_its_data_are_synthetic(config, tmp_path):
    real = simulated_site(config, partition=0, nodes=len(HOSPITALS))
    phantoms = RunConfig(cache=str(tmp_path), image_size=32, phantom_patients=4)
    drawn = simulated_site(phantoms, partition=0, nodes=2)
    assert real.coordinator == simulation_key(3).public_key()
    assert public_text(simulation_key(3)) != public_text(simulation_key(0))
    assert (real.describe().synthetic, drawn.describe().synthetic) == (False, True)


def test_without_a_number_of_phantom_hospitals_there_is_one_for_each_node():
    assert federation_data(RunConfig(), nodes=5).phantom_hospitals == 5
    assert federation_data(RunConfig(phantom_hospitals=2), nodes=5).phantom_hospitals == 2


def test_every_choice_about_the_data_reaches_the_data():
    chosen = RunConfig(
        site_column="site",
        hold_out="a, b",
        labels="20,c=4",
        masks="5",
        dirichlet_sites=6,
        dirichlet_alpha=0.25,
        image_size=48,
        fit="stretch",
        seed=9,
        split_seed=8,
        mask_convention=EXPERT,
        phantom_patients=7,
    )
    asked = federation_data(chosen, nodes=1).model_dump()
    given = chosen.model_dump() | {"data": None, "hold_out": ("a", "b"), "phantom_hospitals": 1}
    assert asked == {key: given[key] for key in asked}


def test_the_split_follows_the_seed_unless_it_has_one_of_its_own():
    assert federation_data(RunConfig(seed=9), nodes=1).split_seed == 9
    assert federation_data(RunConfig(seed=9, split_seed=0), nodes=1).split_seed == 0


def test_an_unknown_mask_convention_is_a_clear_error_before_the_run(config):
    with pytest.raises(RunConfigError, match=f"'modern'.*{EXPERT}"):
        simulated_hospitals(changed(config, mask_convention="modern"), nodes=1)


def test_a_hospital_whose_name_cannot_travel_is_a_clear_error_before_the_run(config, tmp_path):
    shutil.copytree(config.data, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",bare,", ",St. Anna Köln,"))
    with pytest.raises(RunConfigError, match=r"St\. Anna Köln.*source.*1 to 64 letters") as caught:
        simulated_hospitals(changed(config, data=str(tmp_path / "data"), cache=str(tmp_path / "c")), nodes=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"hold_out": "nowhere"}, RunConfigError),
        ({"labels": "a lot"}, RunConfigError),
        ({"labels": "both=1000"}, ManifestError),
        ({"site_column": "ward"}, RunConfigError),
        ({"data": "/nowhere"}, ManifestError),
    ],
)
def test_what_the_data_cannot_give_is_an_input_error(config, fields, error):
    assert issubclass(error, InputError)
    with pytest.raises(error):
        simulated_hospitals(changed(config, **fields), nodes=1)


def test_the_policy_of_a_simulation_trains_without_privacy_and_shows_pictures():
    assert (SIMULATION_POLICY.allow_non_private, SIMULATION_POLICY.minimum_cohort) == (True, 1)
    assert SIMULATION_POLICY.pictures > 0
