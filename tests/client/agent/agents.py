"""Agents for the tests: over any site in this process, and as a process of its own over a small site folder."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.agent.activity import Activity, ActivityLog, read_activity
from client.agent.control import check_taken, note_waiting, read_control
from client.agent.metrics import Metrics
from client.agent.orders import Orders
from client.agent.process import listening
from client.agent.remote import RemoteSite, agent_progress
from client.agent.service import AgentService, Records, Served
from client.policy import SitePolicy
from client.settings import FILE, new_site
from multimix.contract.messages import EvaluateReport, Picture, RoundPlan, TrainReport, Weights, weights_sha256
from multimix.contract.signing import SignedPlan, public_text, verified
from multimix.contract.site import Evaluated, Trained
from multimix.contract.statistics import EvaluationStatistics
from multimix.errors import Refused
from multimix.privacy.ledger import create_ledger
from tests.client.tiny_hospitals import KEY
from tests.support import phantom_films, write_films

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
SITE_TOML = f"""
name = "clinic"
image_size = 32
[server]
address = "a:1"
coordinator_key = "{public_text(KEY)}"
[agent]
threads = 1
device = "cpu"
[policy]
minimum_expected_patients = 1.0
[population]
declared_patients = 8
images_per_patient = 2
delta = 0.01
epsilon_per_run = 3.0
epsilon_lifetime = 4.0
"""


@dataclass
class EchoSite:
    """Answers with the weights it got; each step waits for `steps` to be released, if they are held."""

    held: bool = False
    rounds: list[int] = field(default_factory=list)
    pictures: tuple[Picture, ...] = ()
    failure: Exception | None = None
    release: threading.Event = field(default_factory=threading.Event)

    def describe(self):
        raise Refused("cohort_too_small")

    def train(self, signed: SignedPlan, weights: Weights, *, progress: Callable[[int], None] | None = None) -> Trained:
        plan = verified(signed, KEY.public_key())
        self.rounds.append(plan.round)
        if self.failure:
            raise self.failure
        for step in range(1, plan.work.steps + 1):
            while self.held and not self.release.wait(0.01):
                progress(step - 1)
            progress(step)
        report = TrainReport(
            site="echo",
            job_id=plan.job_id,
            round=plan.round,
            plan_sha256=signed.sha256,
            weights_sha256=weights_sha256(weights),
            steps=plan.work.steps,
            teachers={},
            losses={},
        )
        return Trained(report, weights)

    def evaluate(self, signed: SignedPlan, weights: Weights) -> Evaluated:
        plan = verified(signed, KEY.public_key())
        if self.held:  # it has no steps at which it could be ended
            self.release.wait(20)
        report = EvaluateReport(
            site="echo",
            job_id=plan.job_id,
            round=plan.round,
            plan_sha256=signed.sha256,
            split="test",
            statistics=EvaluationStatistics(patients=10, images=10),
        )
        return Evaluated(report, self.pictures)


@dataclass(frozen=True)
class Agent:
    """An agent in this process."""

    folder: Path
    remote: RemoteSite
    orders: Orders
    records: Records

    @property
    def activity(self) -> list[Activity]:
        return read_activity(self.folder)

    def until_running(self) -> None:
        wait_for(lambda: self.orders.running is not None)


@contextmanager
def agent_over(
    site,
    folder: Path,
    *,
    policy: SitePolicy | None = None,
    most_bytes: int = 64 * MIB,
    spent: float | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Agent]:
    """An agent over any site, its decisions and logs in the folder; `s` is the socket."""
    folder.mkdir(parents=True, exist_ok=True)
    served = Served(site, KEY.public_key(), policy or SitePolicy(), most_bytes)
    waits = lambda job: note_waiting(folder, job)  # noqa: E731
    records = Records(ActivityLog(folder), Metrics(folder / "metrics.prom"), lambda: spent, waits)

    def stopped(plan: RoundPlan) -> bool:
        return refusal(check_taken, read_control(folder), served.policy, plan.job_id) != "answered"

    orders = Orders(stopped=stopped, began=records.began, ended=records.ended)
    service = AgentService(lambda: served, lambda: read_control(folder), orders, records)
    try:
        with listening(service, folder / "socket" / "s", check=check):
            yield Agent(folder, RemoteSite(folder / "socket" / "s", "ab" * 32, wait_s=0.0), orders, records)
    finally:
        orders.close(grace_s=10)
        records.close()


def site_folder(path: Path, *, settings: str = SITE_TOML, patients: int = 8) -> Path:
    """A site of phantoms with an empty ledger, that `tiny_hospitals.KEY` may order to train."""
    new_site(path, "clinic", image_size=32)
    (path / FILE).write_text(settings)
    write_films(path / "store", phantom_films(patients))
    create_ledger(path / "ledger", site="clinic", population="patients")
    return path


def command(*words: object) -> list[str]:
    """The command line of the agent's own commands."""
    code = "import typer, client.agent.cli as c; app = typer.Typer(); c.register(app); app()"
    return [sys.executable, "-c", code, *map(str, words)]


@contextmanager
def agent_process(site: Path, *, wrapper: tuple[str, ...] = ()) -> Iterator[subprocess.Popen]:
    """`multimix-site agent` as a process; it is up when this yields, and told to stop after."""
    with (site.parent / "agent.log").open("ab") as log:
        process = subprocess.Popen(
            [*wrapper, *command("agent", "--site", site)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: process.poll() is not None or agent_progress(socket_of(site)) is not None, timeout_s=60)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def socket_of(site: Path) -> Path:
    return site / "socket" / "agent.sock"


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.01)


def same_bytes(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


def refusal(ask: Callable[..., object], *arguments: object) -> str:
    try:
        ask(*arguments)
    except Refused as refused:
        return refused.reason
    return "answered"


def in_thread(ask: Callable[[], object]) -> Callable[[], object]:
    """Ask in another thread; what is returned waits for the answer or the refusal's reason."""
    answers: list[object] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Refused as refused:
            answers.append(refused.reason)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def answer() -> object:
        thread.join(30)
        return answers[0]

    return answer


def numbers(mib: float = 0.1) -> Weights:
    """Random weights of about this size."""
    random = np.random.default_rng(0)
    return {"encoder.a": random.standard_normal(max(1, int(mib * MIB / 4)), np.float32)}
