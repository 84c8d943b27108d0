"""Whole jobs in this process on tiny phantoms: resume, interruption, workers, held-out hospitals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from multimix.contract.run_config import RunConfig
from multimix.errors import CheckpointError, RunConfigError
from server.app import new_job
from server.job import run_job
from server.results import SiteRound, read_results
from sim.grid import InProcessGrid
from sim.run import simulate

ROUNDS = 3


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def configured(cache, tmp_path):
    def make(out="run", **changes):
        fields = {
            "image_size": 32,
            "width": 2,
            "rounds": ROUNDS,
            "local_steps": 1,
            "images_per_group": 2,
            "phantom_hospitals": 3,
            "phantom_patients": 12,
            "hold_out": "phantom-c",
            "cache": str(cache),
            "out": str(tmp_path / out),
            "pictures": 1,
        }
        return RunConfig(**(fields | changes))

    return make


def weights_of(config):
    return {name: value.tobytes() for name, value in load_file(Path(config.out) / "model.safetensors").items()}


class _StoppedError(Exception):
    pass


def run_until(config, last_round, *, error=_StoppedError):
    """Run a job and break off after a round, as a crash or Ctrl-C would."""

    def stop(state):
        if state.round == last_round:
            raise error

    with InProcessGrid(config.flat(), nodes=3) as grid, pytest.raises(error):
        run_job(grid, new_job(config), after_round=stop)


@pytest.mark.parametrize("broken_after", range(1, ROUNDS + 1))
def test_a_resumed_run_ends_in_the_bytes_of_the_uninterrupted_one(configured, broken_after):
    whole = configured("whole")
    simulate(whole)
    parts = configured("parts")
    run_until(parts, broken_after)
    results, _ = simulate(configured("parts", resume=True))
    assert weights_of(parts) == weights_of(whole)
    assert [record.round for record in results.rounds] == [1, 2, 3]


def test_two_workers_give_the_bytes_of_one(configured):
    one, two = configured("one"), configured("two")
    simulate(one, workers=1)
    simulate(two, workers=2)
    assert weights_of(one) == weights_of(two)


def test_another_seed_gives_other_weights(configured):
    one, other = configured("one"), configured("other", seed=1)
    simulate(one)
    simulate(other)
    assert weights_of(one) != weights_of(other)


def test_an_interrupted_run_says_stopped_and_keeps_its_checkpoint(configured):
    config = configured()
    run_until(config, 2, error=KeyboardInterrupt)
    results = read_results(Path(config.out))
    assert results.status == "stopped"
    assert [record.round for record in results.rounds] == [1, 2]
    assert not (Path(config.out) / "model.safetensors").exists()


def test_a_folder_in_use_is_not_overwritten(configured):
    simulate(configured())
    before = weights_of(configured())
    with pytest.raises(RunConfigError, match="already holds a run"):
        simulate(configured(seed=5))
    assert weights_of(configured()) == before


def test_a_checkpoint_of_another_configuration_is_refused(configured):
    run_until(configured(), 1)
    with pytest.raises(CheckpointError) as refused:
        simulate(configured(resume=True, seed=5))
    assert refused.value.reason == "checkpoint_of_another_job"


def test_resuming_may_change_what_does_not_change_the_weights(configured):
    simulate(configured("whole"))
    run_until(configured("parts"), 1)
    simulate(configured("parts", resume=True, title="another title", deadline_s=77.0))
    assert weights_of(configured("parts")) == weights_of(configured("whole"))


def test_a_held_out_hospital_is_scored_and_teaches_nothing(configured):
    results, _ = simulate(configured())
    assert results.sites["phantom-c"].role == "held-out"
    assert results.sites["phantom-c"].metrics["masked_images"] == 12  # all its patients
    for record in results.rounds:
        assert set(record.sites) == {"phantom-a", "phantom-b"}
        assert all(set(shares) == {"phantom-a", "phantom-b"} for shares in record.module_shares.values())


def test_local_only_figures_stand_beside_the_federated_ones_where_asked(configured):
    results, _ = simulate(configured(compare_local=True))
    alone = {name: site.local_only for name, site in results.sites.items()}
    assert alone["phantom-c"] is None
    for name in ("phantom-a", "phantom-b"):
        assert 0.0 <= alone[name]["dice"] <= 1.0
        assert alone[name]["masked_images"] == results.sites[name].metrics["masked_images"]


def test_fedprox_pulls_the_weights_closer_to_the_start(configured):
    def moved(config):
        results, _ = simulate(config)
        return sum(site.update_norm for record in results.rounds for site in record.sites.values())

    free = moved(configured("free", local_steps=3))
    held = moved(configured("held", local_steps=3, strategy="fedprox", proximal_mu=1000.0))
    assert held < free


def test_under_plain_weighting_a_site_has_one_share_of_the_model_by_the_patients_it_trained_on(configured):
    results, _ = simulate(configured(weighting="plain", masks="phantom-a=1", labels="phantom-b=2", rounds=2))
    assert results.status == "finished"
    for record in results.rounds:
        teachers = {name: site.teachers["encoder"] for name, site in record.sites.items()}
        patients = {name: t.labelled_patients + t.unlabelled_patients for name, t in teachers.items()}
        shares = {name: count / sum(patients.values()) for name, count in patients.items()}
        assert record.module_shares == dict.fromkeys(("encoder", "classifier", "decoder"), shares)


def test_a_run_folder_holds_everything_a_person_and_a_tool_need(configured):
    config = configured()
    simulate(config)
    files = {path.name for path in Path(config.out).iterdir()}
    needed = {
        "results.json",
        "report.html",
        "model.safetensors",
        "model_card.json",
        "checkpoint.safetensors",
        "pictures",
        "heads.jsonl",
    }
    assert files == needed
    results = json.loads((Path(config.out) / "results.json").read_text())
    assert set(results["sites"]["phantom-a"]["metrics"]) >= {"dice", "auroc", "majority_accuracy", "mean_mask_dice"}


def test_twenty_sites_dealt_by_dirichlet_train_together(configured):
    config = configured(dirichlet_sites=20, phantom_patients=60, hold_out="", rounds=1)
    results, _ = simulate(config)
    assert len(results.sites) == 20
    assert all(site.state == "accepted" for site in results.rounds[0].sites.values())


def test_the_paper_rows_run_as_configurations_of_one_program(configured):
    for row, metrics in {"u-net": {"dice"}, "enc-ssl": {"auroc"}, "umtls": {"dice", "auroc"}}.items():
        results, _ = simulate(configured(row, row=row, preset="paper", rounds=1))
        defined = {name for name in ("dice", "auroc") if results.overall.metrics[name] is not None}
        assert defined == metrics


PATIENT_LEVEL = {
    "dp_sampling_rate": 0.5,
    "dp_noise_multiplier": 1.0,
    "phantom_hospitals": 2,
    "hold_out": "",
    "rounds": 2,
}


@pytest.mark.parametrize("dp", ["site", "both"])
def test_a_run_with_site_level_privacy_publishes_nothing_of_a_round_but_who_answered(configured, dp):
    config = configured(dp=dp, dp_accept=True, **PATIENT_LEVEL)
    results, _ = simulate(config)
    assert results.status == "finished"
    answered = SiteRound(state="accepted", steps=1)
    assert [record.sites for record in results.rounds] == [{"phantom-a": answered, "phantom-b": answered}] * 2
    assert results.privacy_details.sites.epsilon <= 8.0
    assert set(results.privacy_details.patients) == (set() if dp == "site" else {"phantom-a", "phantom-b"})


def test_a_run_with_patient_level_privacy_ends_by_itself_at_the_sites_budgets(configured):
    from multimix.privacy.accountant import Mechanism, price

    # 8 training patients at each site. The budget lies between the price of one round and of two.
    one, two = (price({Mechanism(1.0, 0.5): rounds}, delta=8**-1.1).epsilon for rounds in (1, 2))
    budget = (one + two) / 2
    results, folder = simulate(configured(dp="patient", dp_epsilon=budget, **PATIENT_LEVEL | {"rounds": 5}))
    assert (results.status, results.privacy_details.budget_spent) == ("finished", True)
    assert {site.reason for site in results.rounds[1].sites.values()} == {"dp_budget_run"}
    assert [record.round for record in results.rounds] == [1, 2]
    for spent in results.privacy_details.patients.values():
        assert (spent.rounds, spent.epsilon) == (1, one)
    assert (folder / "model.safetensors").exists()


def _as_from_a_terminal():
    """A job in the background, as CI may be, ignores Ctrl-C and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_round_exits_cleanly_and_can_be_resumed(cache, tmp_path):
    out = tmp_path / "run"
    command = [
        *(str(Path(sys.executable).parent / "multimix-sim"), "run", "--hold-out", "phantom-c"),
        *("--rounds", "2", "--local-steps", "120"),
        *("-c", "image-size=32", "-c", "width=2", "-c", "phantom-hospitals=3", "-c", "phantom-patients=12"),
        *("-c", f"cache={cache}", "--out", str(out), "--workers", "2"),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_as_from_a_terminal,  # noqa: PLW1509  (no thread runs here)
    )
    deadline = time.monotonic() + 120
    while not (out / "report.html").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "run again with --resume" in printed
    assert "Traceback" not in printed
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record.round for record in read_results(out).rounds] == [1, 2]
