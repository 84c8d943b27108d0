"""`multimix-sim experiment` as a person meets it: names of cases, mistakes, exit codes, JSON."""

import json

import pytest
from experiment_fakes import answers_of_every_case
from typer.testing import CliRunner

from sim.cli import app
from sim.experiments.archive import archive_cases
from sim.experiments.case import case_name
from sim.experiments.suites import cases

runner = CliRunner()


@pytest.fixture
def invoke(data, cache, tmp_path):
    def run(name, *arguments, given=data):
        folders = ["--data", str(given), "--out", str(tmp_path / "out"), "--cache", str(cache)]
        return runner.invoke(app, ["experiment", name, "--scale", "smoke", *folders, "--workers", "1", *arguments])

    return run


@pytest.mark.parametrize("name", ["paper", "ablation", "federated"])
def test_the_cases_are_listed_and_nothing_is_done(invoke, tmp_path, name):
    done = invoke(name, "--list", given=tmp_path / "nowhere")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [case_name(case) for case in cases(name, "smoke")]
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_data_is_explained(invoke, tmp_path):
    done = invoke("paper", given=tmp_path)
    assert done.exit_code == 2
    assert "experiment_data" in done.output
    assert "chex224" in done.output
    assert "Traceback" not in done.output


def test_a_case_that_is_not_there_is_explained(invoke):
    done = invoke("paper", "--only", "nothing_8-4_s0")
    assert done.exit_code == 2
    assert "nothing_8-4_s0" in done.output


def test_an_experiment_that_is_not_there_is_refused(invoke):
    assert invoke("magic").exit_code == 2


def test_cases_that_are_left_are_counted_and_have_an_exit_code_of_their_own(invoke):
    done = invoke("paper", "--minutes", "0")
    assert done.exit_code == 3, done.output
    assert "0 of 17 cases finished" in done.output


def test_json_is_alone_on_standard_output_though_cases_are_left(invoke):
    done = invoke("paper", "--minutes", "0", "--json")
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    assert (found["experiment"], found["scale"], found["cases"]) == ("paper", "smoke", 0)
    assert len(found["missing"]) == 17


def test_an_experiment_that_is_finished_says_so_and_trains_nothing(invoke, store, tmp_path):
    folder, count = tmp_path / "out" / "smoke" / "cases", len(cases("ablation", "smoke"))
    answers_of_every_case(folder, cases("ablation", "smoke"), store.fingerprint)
    before = {path: path.read_bytes() for path in folder.glob("*/*")}
    done = invoke("ablation", "--replicates", "10")
    assert done.exit_code == 0, done.output
    assert f"{count} of {count} cases finished" in done.output
    assert {path: path.read_bytes() for path in folder.glob("*/*")} == before


def test_chosen_cases_that_are_finished_are_no_mistake(invoke):
    done = invoke("paper", "--only", "majority_8-4_s0", "--replicates", "10")
    assert done.exit_code == 0, done.output
    assert "1 of 17 cases finished" in done.output


def test_published_cases_of_other_data_are_not_taken_over_and_the_number_is_said(invoke):
    done = invoke("paper", "--published", "--minutes", "0")
    assert done.exit_code == 3, done.output
    assert "0 published cases taken over" in done.stderr


def test_published_cases_of_this_data_are_not_trained_again(invoke, store, tmp_path, monkeypatch):
    answers_of_every_case(tmp_path / "theirs", cases("ablation", "smoke"), store.fingerprint)
    names = [case_name(case) for case in cases("ablation", "smoke")]
    archive_cases({name: tmp_path / "theirs" / name for name in names}, tmp_path / "checkout")
    monkeypatch.setattr("server.runs.APP_ROOT", tmp_path / "checkout")
    done = invoke("ablation", "--published", "--minutes", "0", "--replicates", "10")
    assert done.exit_code == 0, done.output
    assert f"{len(names)} published cases taken over" in done.stderr
    assert f"{len(names)} of {len(names)} cases finished" in done.stdout
