"""The run configuration: one set of defaults, and one clear paragraph for a mistake."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from multimix.config import PresetName, RowName
from multimix.contract.run_config import RunConfig, read_run_config
from multimix.errors import RunConfigError

ROOT = Path(__file__).parents[2]


def complaint(**values: object) -> str:
    """Return the message about keys, written here with underscores."""
    with pytest.raises(RunConfigError) as caught:
        read_run_config({key.replace("_", "-"): value for key, value in values.items()})
    assert caught.value.reason == "run_config"
    return str(caught.value)


def test_the_defaults_in_pyproject_are_those_of_the_code():
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    defaults = RunConfig().flat()
    assert written == defaults
    # 1 == True == 1.0 in Python, but not in TOML: Flower checks the types.
    assert {key: type(value) for key, value in written.items()} == {key: type(v) for key, v in defaults.items()}


def test_the_flat_form_holds_what_flower_can_carry_and_reads_back():
    config = RunConfig(rounds=7, hold_out="a,b", resume=True, deadline_s=1.5)
    flat = config.flat()
    assert all(isinstance(value, str | int | float | bool) for value in flat.values())
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", key) for key in flat)
    assert read_run_config(flat) == config


def test_text_from_a_command_line_is_read_as_numbers_and_truth_values():
    config = read_run_config({"rounds": "3", "compare-local": "true", "learning-rate": "1e-3", "resume": "false"})
    assert (config.rounds, config.compare_local, config.learning_rate, config.resume) == (3, True, 1e-3, False)


def test_a_number_given_for_a_budget_is_read_as_its_text():
    config = read_run_config({"labels": 200, "masks": 50})
    assert (config.labels, config.masks) == ("200", "50")


def test_a_misspelt_key_is_named_beside_the_known_ones():
    message = complaint(local_stepz=3)
    assert "'local-stepz'" in message
    assert "local-steps" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("rounds", 0, "greater than or equal to 1"),
        ("rounds", "many", "valid integer"),
        ("rounds", 2.5, "valid integer"),
        ("image-size", 16, "greater than or equal to 32"),
        ("image-size", 40, "multiple of 16"),
        ("image-size", 2048, "less than or equal to 1024"),
        ("weighting", "equal", "'per-module' or 'plain'"),
        ("unlabelled-weight", 1.5, "less than or equal to 1"),
        ("learning-rate", -1.0, "greater than or equal to 0"),
        ("proximal-mu", "nan", "less than or equal to 1000000"),
        ("deadline-s", float("nan"), "less than or equal to 1000000"),
        ("deadline-s", 0.0, "greater than 0"),
        ("maximum-update-norm", float("inf"), "less than or equal to 1000000"),
        ("strategy", "fedsgd", "'fedavg' or 'fedprox'"),
        ("device", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("resume", "perhaps", "valid boolean"),
        ("seed", -1, "greater than or equal to 0"),
        ("dp", "patients", "'none', 'patient', 'site' or 'both'"),
        ("dp-epsilon", 0.0, "greater than 0"),
        ("dp-epsilon", "inf", "less than or equal to 100"),
        ("dp-epsilon", float("nan"), "less than or equal to 100"),
        ("dp-site-epsilon", 101.0, "less than or equal to 100"),
        ("dp-delta", 1.0, "less than 1"),
        ("dp-delta", -1e-9, "greater than or equal to 0"),
        ("dp-site-delta", 1.0, "less than 1"),
        ("dp-clip-norm", 0.0, "greater than 0"),
        ("dp-site-clip-norm", -1.0, "greater than 0"),
        ("dp-noise-multiplier", -0.5, "greater than or equal to 0"),
        ("dp-sampling-rate", 0.0, "greater than 0"),
        ("dp-sampling-rate", 1.5, "less than or equal to 1"),
        ("dp-images-per-patient", 0, "greater than or equal to 1"),
        ("dp-parameters", "some", "'all' or 'affine'"),
        ("dp-budget", -1.0, "greater than or equal to 0"),
        ("dp-budget", 101.0, "less than or equal to 100"),
        ("dp-accept", "perhaps", "valid boolean"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key_and_bound(key, value, bound):
    message = complaint(**{key: value})
    assert f"{key} = {value!r}" in message
    assert bound in message
    assert "\n" not in message


def test_every_mistake_is_named_at_once():
    message = complaint(rounds=0, device="tpu", roundz=1)
    assert all(part in message for part in ("rounds = 0", "device = 'tpu'", "'roundz'"))
    assert message.count("The run configuration cannot be used") == 1


def test_a_key_given_in_both_spellings_is_refused():
    with pytest.raises(RunConfigError, match="image_size"):
        read_run_config({"image-size": 32, "image_size": 64})


@pytest.mark.parametrize("row", get_args(RowName))
@pytest.mark.parametrize("preset", get_args(PresetName))
def test_every_row_of_every_preset_is_a_method(preset, row):
    method = RunConfig(preset=preset, row=row, image_size=32, width=2).method()
    assert (method.network.image_size, method.network.width) == (32, 2)


def test_the_smallest_and_largest_images_make_a_method():
    for size in (32, 1024):
        assert RunConfig(image_size=size).method().network.image_size == size


def test_a_learning_rate_of_0_keeps_that_of_the_preset():
    kept = RunConfig(preset="paper").method()
    changed = RunConfig(preset="paper", learning_rate=0.5).method()
    assert kept.optimiser.learning_rate == 1e-4  # Haque et al. 2021
    assert changed.optimiser.learning_rate == 0.5
    assert changed.model_copy(update={"optimiser": kept.optimiser}) == kept


@pytest.mark.parametrize(("text", "names"), [("", ()), ("a", ("a",)), (" a , b,,", ("a", "b"))])
def test_hospitals_held_out_are_named_between_commas(text, names):
    assert RunConfig(hold_out=text).held_out() == names


@pytest.mark.parametrize(
    ("dp", "patients", "sites"),
    [("none", False, False), ("patient", True, False), ("site", False, True), ("both", True, True)],
)
def test_the_level_of_privacy_says_who_is_protected(dp, patients, sites):
    config = RunConfig(dp=dp)
    assert (config.patient_level, config.site_level) == (patients, sites)


def test_a_run_is_not_private_unless_it_is_asked_for():
    assert RunConfig().dp == "none"
