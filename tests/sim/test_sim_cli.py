"""The commands as a new user meets them: help, mistakes, JSON."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from client.cli import app as site_app
from sim.cli import app

runner = CliRunner()
TINY = [
    *("-c", "image-size=32", "-c", "width=2", "-c", "phantom-hospitals=2", "-c", "phantom-patients=12"),
    *("-c", "rounds=1", "-c", "local-steps=1", "-c", "images-per-group=2", "--workers", "1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def finished(folder):
    done = runner.invoke(app, ["run", *TINY, "-c", f"cache={folder / 'cache'}", "--out", str(folder / "run"), "--json"])
    assert done.exit_code == 0, done.output
    return folder / "run", done.stdout


def refused(command, *arguments):
    done = runner.invoke(command, list(arguments))
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("command", [[], ["run"], ["flower"], ["predict"], ["phantoms"], ["table"]])
def test_every_command_explains_itself(command):
    done = runner.invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_json_is_alone_on_standard_output(finished):
    results = json.loads(finished[1])
    assert results["status"] == "finished"
    assert set(results["sites"]) == {"phantom-a", "phantom-b"}


def test_a_run_prints_as_a_markdown_table(finished):
    done = runner.invoke(app, ["table", str(finished[0])])
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("| site | role |")
    assert any("majority / mean mask" in line for line in lines)
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("roundz=3", ["roundz", "known:", "rounds"]),
        ("rounds=0", ["rounds", "'0'", "greater than or equal to 1"]),
        ("image-size=50", ["image-size", "50", "multiple of 16"]),
        ("strategy=fedmagic", ["strategy", "fedmagic", "fedavg"]),
        ("quorum", ["key=value"]),
    ],
)
def test_a_bad_key_is_explained_before_anything_is_written(tmp_path, key, named):
    message = refused(app, "run", "-c", key, "--out", str(tmp_path / "run"))
    assert all(word in message for word in named), message
    assert not (tmp_path / "run").exists()


def test_an_unknown_hospital_to_hold_out_lists_the_known_ones(folder):
    message = refused(app, "run", *TINY, "-c", f"cache={folder / 'cache'}", "--hold-out", "nowhere")
    assert "nowhere" in message
    assert "phantom-a, phantom-b" in message


def test_a_budget_above_what_there_is_names_site_asked_and_available(folder):
    message = refused(app, "run", *TINY, "-c", f"cache={folder / 'cache'}", "--labels", "phantom-a=1000")
    assert re.search(r"phantom-a .*1000.*\d", message)


def test_a_folder_without_a_manifest_is_explained(tmp_path):
    message = refused(app, "run", "--data", str(tmp_path), "-c", f"cache={tmp_path / 'cache'}")
    assert "manifest.csv" in message


def test_a_gpu_that_is_not_there_ends_the_run_before_it_begins(folder, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    arguments = [*TINY, "-c", f"cache={folder / 'cache'}", "-c", "device=cuda", "--out", str(tmp_path / "run")]
    assert "use auto or cpu" in refused(app, "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_hollow_site_level_claim_is_explained_and_runs_with_accept(folder, tmp_path):
    arguments = [*TINY, "-c", f"cache={folder / 'cache'}", "-c", "dp=site", "--out", str(tmp_path / "run")]
    message = refused(app, "run", *arguments)
    assert "dp_hollow" in message
    assert "2 sites are fewer than the 100" in message
    assert "give --accept" in message
    assert not (tmp_path / "run").exists()
    done = runner.invoke(app, ["run", *arguments, "--accept", "--json"])
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert results["config"]["dp-accept"] is True
    assert results["privacy_details"]["sites"]["sites"] == 2


def test_flower_takes_accept_too():
    assert "--accept" in runner.invoke(app, ["flower", "--help"], env={"COLUMNS": "200"}).output


def test_predictions_are_written_with_overlays_and_masks(finished, tmp_path):
    for number, shape in enumerate([(40, 60), (60, 40)]):
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"film-{number}.png")
    model, out = finished[0] / "model.safetensors", tmp_path / "out"
    done = runner.invoke(app, ["predict", str(model), str(tmp_path), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [Path(row["image"]).name for row in rows] == ["film-0.png", "film-1.png"]
    for row in rows:
        assert 0.0 <= row["pneumonia"] <= 1.0
        assert Image.open(out / row["mask"]).size == (32, 32)
        assert Image.open(out / row["overlay"]).size[0] > 3 * 32
    assert len((out / "predictions.csv").read_text().splitlines()) == 3


def test_predicting_with_something_that_is_no_model_is_explained(finished, tmp_path):
    garbage = tmp_path / "model.safetensors"
    garbage.write_bytes(b"not a model")
    assert "model.safetensors of a run folder" in refused(app, "predict", str(garbage), str(finished[0] / "pictures"))


def test_predicting_for_no_image_is_explained(finished, tmp_path):
    assert "no PNG or JPEG" in refused(app, "predict", str(finished[0] / "model.safetensors"), str(tmp_path))


def test_a_site_takes_a_manifest_in_and_shows_counts_alone(tmp_path):
    made = runner.invoke(
        app, ["phantoms", str(tmp_path / "films"), "--hospitals", "1", "--patients", "6", "--image-size", "64"]
    )
    assert made.exit_code == 0, made.output
    site = ["--site", str(tmp_path / "site")]
    assert runner.invoke(site_app, ["init", "here", *site, "--image-size", "32"]).exit_code == 0
    done = runner.invoke(site_app, ["intake", str(tmp_path / "films" / "manifest.csv"), *site, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["holdings"]["patients"] == 6
    shown = runner.invoke(site_app, ["show", *site])
    assert "phantom-a" not in shown.output
    assert re.search(r"images\s+6", shown.output)


def test_a_site_refuses_a_size_the_network_cannot_take(tmp_path):
    message = refused(site_app, "init", "here", "--site", str(tmp_path / "site"), "--image-size", "50")
    assert "multiple of 16" in message


def test_phantoms_as_dicom_are_a_folder_and_a_labels_file_for_each_hospital(tmp_path):
    arguments = [
        "phantoms",
        str(tmp_path / "out"),
        "--dicom",
        "--hospitals",
        "2",
        "--patients",
        "2",
        "--image-size",
        "64",
    ]
    assert runner.invoke(app, arguments).exit_code == 0
    for name in ("phantom-a", "phantom-b"):
        assert len(list((tmp_path / "out" / name).rglob("*.dcm"))) == 2
        assert (tmp_path / "out" / name / "labels.csv").read_text().startswith("sop_instance_uid,label")
