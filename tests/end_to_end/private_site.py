"""Run as a program: a training site with a ledger that can be killed in any round; it starts in no time.

    python -m tests.end_to_end.private_site FOLDER

imports everything and trains once. Then, for each line it reads, a fork of it lives: it trains
private rounds on a phantom hospital up to that round, or until it is killed. It says the fork's number, then how it
ended. Each life begins with the round it sent last: a retry.

Beside ledger and images it keeps two flushed logs, as an observer would who sees the training begin and the wire:
`executions.log` and `sent.log`. The server, which lives as long as the site, keeps the heads it countersigns.
"""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import client.site
from client.books import Books
from client.envelopes import pack
from client.policy import SitePolicy
from client.population import PopulationSettings
from client.site import LocalSite
from multimix.batches import TrainingData
from multimix.config import MethodConfig, preset
from multimix.contract.messages import LocalWork, RoundPlan, Weights, weights_sha256
from multimix.contract.privacy import PatientPrivacy
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import SignedPlan, sign, simulation_key
from multimix.contract.site import Trained
from multimix.data.hospitals import Hospital
from multimix.data.simulation import simulated_hospitals
from multimix.network import MultiMixNetwork, new_network
from multimix.privacy.ledger import FILE, create_ledger
from multimix.privacy.noise import commitment
from multimix.privacy.training import train_privately
from multimix.weights import export
from server.heads import Heads

SITE = "phantom-a"
JOBS = ("even", "odd")  # the privacy of a run is fixed: two of them, by turns, with two mechanisms
EXECUTIONS, SENT, LEDGER, HEADS = "executions.log", "sent.log", "ledger", "heads.jsonl"
STEPS = 1
NOISES = (10.0, 15.0)
RATE = 0.5
POPULATION = PopulationSettings(declared_patients=20, delta=1e-5, epsilon_per_run=50.0, epsilon_lifetime=50.0)
POLICY = SitePolicy(minimum_expected_patients=1.0)
KEY = simulation_key(0)
METHOD: MethodConfig = preset("modern", image_size=32, width=2)
WEIGHTS: Weights = export(new_network(METHOD.network, 0))
MOST_ROUNDS = 100_000


def main(folder: Path) -> None:
    """Start a life for each line, one after the other."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as elsewhere:  # what torch and the accountants do only once is done
        live(folder, Path(elsewhere), until=1)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(folder, folder, until=int(line))
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def live(images: Path, folder: Path, until: int) -> None:
    """Answer round after round, as a federation would ask."""
    client.site.train_privately = _Observed(folder)
    site = LocalSite(
        hospital_of(images), POLICY, KEY.public_key(), device="cpu", books_of=lambda _plan: books_of(folder)
    )
    heads = Heads(folder / HEADS)
    first = max((line["round"] for line in log_lines(folder / SENT)), default=1)
    for round_number in range(first, until + 1):
        signed = replace(order(round_number), countersigned=heads.last(SITE))
        trained = site.train(signed, WEIGHTS)
        extension = trained.report.ledger
        answer = pack(Trained(trained.report.model_copy(update={"ledger": None}), trained.weights))
        sent = hashlib.sha256(answer).hexdigest()
        log(folder / SENT, round=round_number, plan_sha256=signed.sha256, sha256=sent)
        heads.countersign(SITE, extension, KEY, job_id=JOBS[round_number % 2], round_number=round_number)


def hospital_of(images: Path) -> Hospital:
    """A phantom hospital of 13 training patients, half of them without label or mask."""
    config = RunConfig(
        phantom_hospitals=1, phantom_patients=20, image_size=32, labels="6", masks="6", cache=str(images / "cache")
    )
    return simulated_hospitals(config, nodes=1)[0]


def books_of(folder: Path) -> Books:
    """The books, begun on first use; a creation that was killed is taken up."""
    if not (folder / LEDGER / FILE).exists():
        create_ledger(folder / LEDGER, site=SITE, population=POPULATION.name)
    return Books(folder / LEDGER, SITE, POPULATION)


def order(round_number: int) -> SignedPlan:
    """The one plan of a round."""
    plan = RoundPlan(
        job_id=JOBS[round_number % 2],
        round=round_number,
        kind="train",
        seed=0,
        method=METHOD,
        work=LocalWork(
            steps=STEPS, images_per_group=1, first_step=STEPS * (round_number - 1), total_steps=STEPS * MOST_ROUNDS
        ),
        weights_sha256=weights_sha256(WEIGHTS),
        dp=PatientPrivacy(
            noise_multiplier=NOISES[round_number % 2],
            clip_norm=1.0,
            sampling_rate=RATE,
            declared_patients=POPULATION.declared_patients,
            images_per_patient=2,
            delta=POPULATION.failure_probability,
            modules=("encoder", "classifier", "decoder"),
            module_weights={"encoder": 1.0, "classifier": 1.0, "decoder": 1.0},
            rounds=MOST_ROUNDS,
            epsilon=50.0,
        ),
    )
    return sign(plan, KEY)


class _Observed:
    """Private training, with a line in the log before it begins."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / EXECUTIONS

    def __call__(
        self,
        network: MultiMixNetwork,
        data: TrainingData,
        method: MethodConfig,
        work: LocalWork,
        dp: PatientPrivacy,
        *,
        secret: bytes,
        progress: object = None,
    ) -> Weights:
        log(
            self._log,
            commitment=commitment(secret),
            first_step=work.first_step,
            steps=work.steps,
            noise_multiplier=dp.noise_multiplier,
            sampling_rate=dp.sampling_rate,
        )
        return train_privately(network, data, method, work, dp, secret=secret)


def log(path: Path, **fields: object) -> None:
    """Append a line and see it on disk; it begins with an end of line, for the one before may have been cut."""
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(fields).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def log_lines(path: Path) -> list[dict]:
    """The whole lines of a log."""
    raw = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith(b"}\n")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
