"""A hospital that lies, among real ones: what it sends is left out under its reason, and the model is as without it.

One federation of real processes on the loopback. In one job the evil agent tells another lie in each round; the job
beside it, in which the same hospital refuses those rounds, says what the model has to be.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.deployment.federation import QUICK, deployment, wait_for

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
HONEST, EVIL = ("phantom-a", "phantom-b"), "phantom-c"
# What it does in each round after the first, which it answers honestly.
LIES = {
    "nan": "weights_not_finite",
    "huge": "update_norm",
    "stale": "wrong_round",
    "rebound": "wrong_plan",
    "replayed": "wrong_round",
    "large": "reply_too_large",
}
OPTIONS = (*QUICK, f"rounds={1 + len(LIES)}", "local-steps=1")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("malice"), (*HONEST, EVIL), private=False) as made:
        made.start_all()
        yield made


@pytest.fixture(scope="module")
def attacked(federation):
    start_evil(federation, "honest", *LIES)
    return federation.run_job("attacked", *OPTIONS)


def start_evil(federation, *kinds):
    """Put the evil agent in the place of the one that runs at its site."""
    running = federation.programs[f"agent-{EVIL}"]
    running.stop()
    before = running.said.count("ready")
    module = (sys.executable, "-m", "tests.deployment.evil_agent", ",".join(kinds))
    site = ("--site", str(federation.site_folder(EVIL)))
    started = federation.start(f"agent-{EVIL}", EVIL, "env", f"PYTHONPATH={ROOT}", *module, *site)
    wait_for("the evil agent is ready", lambda: started.said.count("ready") > before)


def of_the_evil(results):
    """Its state and reason in each round."""
    records = [each["sites"][EVIL] for each in results["rounds"]]
    return [(record["state"], record["reason"]) for record in records]


def weights_of(federation, name):
    return load_file(federation.federation / "runs" / name / "model.safetensors")


@pytest.mark.chaos
@pytest.mark.parametrize(("number", "lie"), list(enumerate(LIES, 1)))
def test_a_lie_is_left_out_under_its_reason(attacked, number, lie):
    assert of_the_evil(attacked)[number] == ("rejected", LIES[lie])


@pytest.mark.chaos
def test_the_run_finishes_with_the_honest_sites_accepted_in_every_round(attacked):
    assert attacked["status"] == "finished"
    assert [[each["sites"][site]["state"] for site in HONEST] for each in attacked["rounds"]] == (
        [["accepted", "accepted"]] * (1 + len(LIES))
    )


@pytest.mark.chaos
def test_the_model_is_that_of_a_run_in_which_the_site_refused_instead_of_lying(federation, attacked):
    start_evil(federation, "honest", "refuses")
    refused = federation.run_job("refused", *OPTIONS)
    assert of_the_evil(refused) == [("accepted", None), *[("refused", "training_failed")] * len(LIES)]
    assert federation.model("attacked") == federation.model("refused")
    assert all(np.isfinite(value).all() for value in weights_of(federation, "attacked").values())


@pytest.mark.chaos
def test_the_answer_to_another_job_is_left_out(federation):
    start_evil(federation, "replayed")
    once = (*OPTIONS, "rounds=1")
    assert of_the_evil(federation.run_job("first", *once)) == [("accepted", None)]  # it has none to repeat yet
    assert of_the_evil(federation.run_job("second", *once)) == [("rejected", "wrong_job")]


@pytest.mark.chaos
def test_under_site_level_privacy_no_numbers_count_as_zero_and_nobody_is_told(federation):
    start_evil(federation, "nan")
    results = federation.run_job("noised", *OPTIONS, "rounds=2", "dp=site", "dp-accept=true")
    assert of_the_evil(results) == [("accepted", None)] * 2
    assert all(np.isfinite(value).all() for value in weights_of(federation, "noised").values())
