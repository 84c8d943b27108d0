"""A federation that trains privately, from the first card to the report, in this process on tiny phantoms."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from multimix.contract.run_config import RunConfig
from multimix.data.simulation import simulated_hospitals
from multimix.privacy.accountant import Mechanism, default_delta, price
from multimix.privacy.entries import Commit, Evaluation, Genesis, Refusal, Reservation
from multimix.privacy.history import history_of
from multimix.privacy.ledger import Ledger, read_ledger
from server.app import new_job
from server.checkpoint import FILE as CHECKPOINT
from server.heads import FILE as HEADS
from server.heads import Heads
from server.job import run_job
from server.results import Results
from sim.grid import InProcessGrid
from sim.run import simulate

SITES = ("phantom-a", "phantom-b")
ROUNDS = 2
PATIENTS = 8  # of 12 train
STEP = Mechanism(noise_multiplier=1.0, sampling_rate=0.5)
A_WHOLE_RUN = [Genesis, *[Reservation, Commit] * ROUNDS, Evaluation]


@dataclass(frozen=True)
class Run:
    """A run with a cache, and so ledgers, of its own."""

    folder: Path

    def config(self, **changes: object) -> RunConfig:
        fields = {
            "dp": "patient",
            "dp_seeded": True,
            "dp_noise_multiplier": STEP.noise_multiplier,
            "dp_sampling_rate": STEP.sampling_rate,
            "image_size": 32,
            "width": 2,
            "rounds": ROUNDS,
            "local_steps": 1,
            "phantom_hospitals": len(SITES),
            "phantom_patients": 12,
            "pictures": 0,
        }
        return RunConfig(**(fields | changes), out=str(self.folder / "out"), cache=str(self.folder / "cache"))

    def whole(self, **changes: object) -> Results:
        return simulate(self.config(**changes))[0]

    def until(self, last_round: int, **changes: object) -> None:
        """Run, or resume, until the server stops after a round."""

        def stop(state):
            if state.round == last_round:
                raise _ServerStoppedError

        config = self.config(**changes)
        with InProcessGrid(config.flat(), nodes=len(SITES)) as grid, pytest.raises(_ServerStoppedError):
            run_job(grid, new_job(config), after_round=stop)

    def copied(self, folder: Path) -> "Run":
        shutil.copytree(self.folder, folder, symlinks=True)
        return Run(folder)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "out" / CHECKPOINT

    def weights(self) -> dict[str, bytes]:
        return {n: value.tobytes() for n, value in load_file(self.folder / "out" / "model.safetensors").items()}

    def ledgers(self) -> dict[str, Ledger]:
        """The sites' ledgers of the only job, every signature checked."""
        (job,) = (self.folder / "cache" / "ledgers").iterdir()
        return {folder.name: read_ledger(folder, every_signature=True) for folder in job.iterdir()}


class _ServerStoppedError(Exception):
    pass


def kinds_of(ledger: Ledger) -> list[type]:
    return [type(entry.body) for entry in ledger.entries]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A run that has not begun; the images are decoded."""
    run = Run(tmp_path_factory.mktemp("fresh"))
    simulated_hospitals(run.config(), nodes=len(SITES))
    return run


@pytest.fixture(scope="module")
def seeded(fresh, tmp_path_factory):
    """A finished run with noise from the seed, and its results."""
    run = fresh.copied(tmp_path_factory.mktemp("seeded") / "run")
    return run, run.whole()


def test_a_seeded_run_says_that_it_is_not_private_in_results_report_and_ledgers(seeded):
    run, results = seeded
    assert results.privacy.startswith("NOT PRIVATE (epsilon = infinity)")
    assert results.privacy_details.seeded
    assert "NOT PRIVATE" in (run.folder / "out" / "report.html").read_text()
    bodies = [entry.body for ledger in run.ledgers().values() for entry in ledger.entries]
    assert {body.seeded for body in bodies if isinstance(body, Reservation)} == {True}


def test_the_same_seed_gives_the_same_weights_bit_for_bit(seeded, fresh, tmp_path):
    run, again = seeded[0], fresh.copied(tmp_path / "again")
    again.whole()
    assert again.weights() == run.weights()


def test_without_a_seed_two_runs_differ_and_are_stated_as_private(fresh, tmp_path):
    runs = [fresh.copied(tmp_path / name) for name in "ab"]
    results = [run.whole(dp_seeded=False, rounds=1) for run in runs]
    assert runs[0].weights() != runs[1].weights()
    assert not any("NOT PRIVATE" in each.privacy for each in results)
    assert not any(each.privacy_details.seeded for each in results)


def test_the_ledgers_of_a_run_verify_and_end_where_the_server_s_heads_do(seeded):
    run, _ = seeded
    heads, ledgers = Heads(run.folder / "out" / HEADS), run.ledgers()
    assert {site: kinds_of(ledger) for site, ledger in ledgers.items()} == dict.fromkeys(SITES, A_WHOLE_RUN)
    assert {site: heads.last(site).head for site in SITES} == {site: ledgers[site].head for site in SITES}


def test_a_run_whose_budget_is_too_small_stops_by_itself_with_what_was_spent_within_it(fresh, tmp_path):
    delta = default_delta(PATIENTS)
    one, two = (price({STEP: steps}, delta=delta).epsilon for steps in (1, 2))
    run = fresh.copied(tmp_path / "run")
    budget = (one + two) / 2
    results = run.whole(dp_seeded=False, rounds=5, dp_budget=budget, dp_epsilon=budget)
    assert (results.status, results.privacy_details.budget_spent) == ("finished", True)
    assert [record.round for record in results.rounds] == [1, 2]
    for site, ledger in run.ledgers().items():
        assert kinds_of(ledger) == [Genesis, Reservation, Commit, Refusal, Evaluation]
        assert history_of(ledger.entries) == {STEP: 1}
        assert results.privacy_details.patients[site].epsilon == one <= budget


def test_a_resumed_run_spends_nothing_twice_and_ends_in_the_bytes_of_an_undisturbed_one(fresh, tmp_path):
    run = fresh.copied(tmp_path / "run")
    run.until(1)
    undisturbed = run.copied(tmp_path / "undisturbed")  # the secret follows from the job too, so from the same one
    undisturbed.whole(resume=True)
    first = run.checkpoint.read_bytes()
    run.until(2, resume=True)
    spent = {site: ledger.head for site, ledger in run.ledgers().items()}
    run.checkpoint.write_bytes(first)  # the server lost the round that the sites had answered
    run.whole(resume=True)
    after = run.ledgers()
    assert {site: kinds_of(ledger) for site, ledger in after.items()} == dict.fromkeys(SITES, A_WHOLE_RUN)
    assert {site: after[site].head_at(head.length) for site, head in spent.items()} == {
        site: head.sha256 for site, head in spent.items()
    }
    assert run.weights() == undisturbed.weights()
