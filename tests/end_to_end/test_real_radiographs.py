"""A short federation on the real radiographs: enough steps to see that it learns, not to reach the README's figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "multimix-sim")


@pytest.fixture(scope="module")
def results(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    done = subprocess.run(
        [
            *(
                COMMAND,
                "run",
                "--data",
                str(real_data / "cxr"),
                "--hold-out",
                "montgomery",
                "--out",
                str(folder / "run"),
            ),
            *(
                "--rounds",
                "6",
                "--local-steps",
                "25",
                "-c",
                "image-size=64",
                "-c",
                f"cache={folder / 'cache'}",
                "--json",
            ),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


pytestmark = [pytest.mark.data, pytest.mark.slow, pytest.mark.timeout(1600)]


def test_an_unseen_hospital_is_segmented_better_than_by_the_mean_mask(results):
    metrics = results["sites"]["montgomery"]["metrics"]
    assert results["sites"]["montgomery"]["role"] == "held-out"
    assert metrics["masked_images"] == 111
    assert metrics["dice"] > max(0.80, metrics["mean_mask_dice"] + 0.05)


def test_pneumonia_is_ranked_above_chance_on_held_out_patients(results):
    metrics = results["sites"]["kermany"]["metrics"]
    assert metrics["labelled_images"] == 124
    assert metrics["auroc_low"] > 0.70


def test_masks_are_learned_by_the_convention_of_the_unseen_hospital_alone(results):
    assert {name: c["learned"] for name, c in results["conventions"].items()} == {
        "behind_heart": False,
        "mediastinum_excluded": True,
    }
    assert results["conventions"]["behind_heart"]["sites"] == ["cohen", "kermany"]
    for record in results["rounds"]:
        assert all(site["state"] == "accepted" for site in record["sites"].values())
        decoder = {name: site["teachers"]["decoder"]["labelled_patients"] for name, site in record["sites"].items()}
        assert {name for name, count in decoder.items() if count} == {"jsrt", "shenzhen"}


def test_sites_of_one_class_do_not_supervise_the_classifier(results):
    for record in results["rounds"]:
        taught = {name: s["teachers"]["classifier"]["labelled_patients"] for name, s in record["sites"].items()}
        assert {name for name, count in taught.items() if count} == {"kermany", "nih14"}
