import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sample_results import ROUNDS, sample_results

from multimix.errors import InputError
from server.results import Picture, Results, SiteRound, read_results, write_results

FIELDS = sample_results(rounds=1).model_dump()


def _changed(**fields):
    return Results.model_validate({**FIELDS, **fields})


def test_what_is_written_is_what_is_read(tmp_path):
    results = sample_results()
    write_results(results, tmp_path)
    assert read_results(tmp_path) == results


def test_other_tools_find_the_final_figures_at_the_documented_paths(tmp_path):
    file = json.loads(write_results(sample_results(), tmp_path).read_text())
    assert file["schema_version"] == 1
    assert file["sites"]["montgomery"]["role"] == "held-out"
    assert file["sites"]["montgomery"]["metrics"]["dice"] == 0.918
    assert file["sites"]["jsrt"]["metrics"]["auroc"] is None
    assert len(file["rounds"]) == ROUNDS


@given(
    value=st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
def test_a_configuration_value_keeps_its_type_and_value(value):
    results = _changed(config={"key": value})
    back = Results.model_validate_json(results.model_dump_json()).config["key"]
    assert type(back) is type(value)
    assert back == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_becomes_undefined_and_never_nan_in_the_file(value):
    site = SiteRound(state="rejected", reason="not-finite", losses={"total": value}, update_norm=value)
    assert site.losses == {"total": None}
    assert site.update_norm is None


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="colour"):
        _changed(colour="blue")


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValidationError, match="started"):
        _changed(started="2026-11-22T09:14:03")


@pytest.mark.parametrize(
    "file",
    [
        "/etc/a.png",
        "pictures/../../a.png",
        "elsewhere/a.png",
        "pictures/a.svg",
        "pictures.png",
        "pictures\\a.png",
    ],
)
def test_a_picture_outside_the_pictures_folder_is_refused(file):
    with pytest.raises(ValidationError, match="pictures/"):
        Picture(site="jsrt", caption="", file=file)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    old = sample_results(rounds=3)
    write_results(old, tmp_path)

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(InputError, match="No space left on device") as caught:
        write_results(sample_results(), tmp_path)
    assert caught.value.reason == "unwritable-file"
    assert read_results(tmp_path) == old
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_truncated_file_is_refused_by_name(tmp_path):
    path = write_results(sample_results(), tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"results\.json is not a results file"):
        read_results(tmp_path)


def test_another_schema_version_is_refused_and_named(tmp_path):
    path = write_results(sample_results(), tmp_path)
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(InputError, match="schema_version"):
        read_results(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match="Name the folder of a run"):
        read_results(tmp_path)
