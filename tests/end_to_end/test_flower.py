"""The main job as a person runs it: `flwr run .` with Flower's simulation engine, against the in-process run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.browser import load_in_browser

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).parent / "multimix-sim")
JOB = (
    *("--hold-out", "phantom-c", "--rounds", "2", "--local-steps", "2"),
    *("-c", "image-size=32", "-c", "width=4", "-c", "phantom-hospitals=3", "-c", "phantom-patients=16"),
)


def multimix_sim(*arguments, cwd):
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([COMMAND, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def flower_processes():
    """Return the processes that run in a FLWR_HOME of ours: SuperLink, ServerApp, Ray and its workers."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"multimix-flower-" in (process / "environ").read_bytes():
                found.add(int(process.name))
        except OSError:  # gone, or not ours to read
            continue
    return found


@pytest.fixture(scope="module")
def flower_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flower")
    before = flower_processes()
    printed = multimix_sim("flower", *JOB, "--out", str(folder / "run"), "-c", f"cache={folder / 'cache'}", cwd=folder)
    return folder, printed, flower_processes() - before


def test_a_flower_run_leaves_results_report_model_and_card(flower_run):
    folder, printed, _ = flower_run
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["synthetic"]
    assert {name: site["role"] for name, site in results["sites"].items()} == {
        "phantom-a": "train",
        "phantom-b": "train",
        "phantom-c": "held-out",
    }
    assert all(0.0 <= site["metrics"]["dice"] <= 1.0 for site in results["sites"].values())
    assert [len(record["sites"]) for record in results["rounds"]] == [2, 2]
    assert (folder / "run" / "model_card.json").exists()
    assert "SYNTHETIC" in printed
    assert "epsilon = infinity" in printed


def test_a_flower_run_stops_the_superlink_it_started(flower_run):
    assert flower_run[2] == set()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_in_process_run_gives_the_very_weights_of_the_flower_run(flower_run, tmp_path, workers):
    folder, _, _ = flower_run
    multimix_sim("run", *JOB, "--out", str(tmp_path / "run"), "--workers", workers, cwd=tmp_path)
    flower = load_file(folder / "run" / "model.safetensors")
    here = load_file(tmp_path / "run" / "model.safetensors")
    assert flower.keys() == here.keys()
    assert all(flower[name].tobytes() == here[name].tobytes() for name in flower)


@pytest.mark.browser
def test_the_report_of_a_flower_run_loads_in_a_browser_without_a_complaint(flower_run, tmp_path):
    dom, console = load_in_browser(flower_run[0] / "run" / "report.html", tmp_path / "profile")
    assert console == []
    for text in ("SYNTHETIC", "epsilon = infinity", "phantom-c", "held-out", "data:image/png;base64"):
        assert text in dom
