"""Three hospitals with real radiographs train privately over real SuperNodes, and one of them dies on the way.

What issue 6 calls done: a report, a model, three ledgers that verify. Each hospital has what such hospitals have: two
have labels, one has masks.
"""

import csv
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.deployment.federation import Held, deployment, wait_for

pytestmark = [pytest.mark.data, pytest.mark.slow, pytest.mark.timeout(1500)]

# How many patients, and images with each label and a mask, a hospital says that it has, about.
HOSPITALS = {"kermany": (600, 300, 300, 0), "nih14": (560, 400, 400, 0), "shenzhen": (530, 260, 0, 450)}
ROUNDS = 3
OPTIONS = (f"rounds={ROUNDS}", "local-steps=4", "image-size=64", "width=4", "deadline-s=300", "quorum=3",
           "dp=patient", "dp-epsilon=3", "dp-delta=0.001", "dp-sampling-rate=0.05", "dp-images-per-patient=1", "title=Three hospitals")  # fmt: skip


def hospital(cxr: Path, folder: Path, site: str) -> Held:
    """Copy what one hospital holds into a folder of its own."""
    patients, normal, pneumonia, masks = HOSPITALS[site]
    shutil.copytree(cxr / site, folder / site / site)
    with (cxr / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == site]
    manifest = folder / site / "manifest.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(row if masks else row | {"mask": ""} for row in rows)
    return Held(manifest, 64, patients, normal, pneumonia, masks)


def rounds_done(made) -> int:
    try:
        return len(made.results("three")["rounds"])
    except (OSError, ValueError):
        return 0


@pytest.fixture(scope="module")
def done(real_data, tmp_path_factory):
    """The run: the second hospital's machine goes down in the second round, and comes back."""
    base = tmp_path_factory.mktemp("three")
    with deployment(
        base, tuple(HOSPITALS), images=lambda site: hospital(real_data / "cxr", base / "images", site)
    ) as made:
        made.start_all()
        running = made.begin_job("three", *OPTIONS)
        wait_for("a round is done", lambda: rounds_done(made) >= 1, within_s=400)
        for program in ("agent-nih14", "connector-nih14"):
            made.programs[program].kill()
        made.start_site("nih14")
        assert running.process.wait(timeout=900) == 0, running.said[-3000:]
        yield made


def test_every_hospital_is_in_every_round_the_one_that_died_too(done):
    results = done.results("three")
    assert results["status"] == "finished"
    assert [{site: s["state"] for site, s in each["sites"].items()} for each in results["rounds"]] == [
        dict.fromkeys(HOSPITALS, "accepted")
    ] * ROUNDS


def test_there_is_a_model_and_a_report(done):
    run = done.federation / "runs" / "three"
    assert len(load_file(run / "model.safetensors")) > 10
    report = (run / "report.html").read_text()
    assert "Three hospitals" in report
    assert all(site in report for site in HOSPITALS)


@pytest.mark.parametrize("site", HOSPITALS)
def test_every_ledger_verifies_against_the_heads_that_the_coordinator_keeps(done, site):
    found = done.verified(site)
    assert found["truncation"] == "checked"
    assert found["counts"]["commit"] == ROUNDS  # a round that was trained twice was released once
