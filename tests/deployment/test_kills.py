"""Any process of a federation may be killed at any moment: once it is back, the model is that of the undisturbed run.

Kills are drawn from a seed; `make chaos` does them.
"""

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from multimix.privacy.entries import Commit, Reservation
from multimix.privacy.ledger import read_ledger
from tests.deployment.federation import PRIVATE, QUICK, Deployment, Program, deployment
from tests.deployment.processes import those_that_are

SITES = ("phantom-a", "phantom-b")
OPTIONS = (*QUICK, "rounds=6", "quorum=2")
PROGRAMS = {  # as their command lines name them
    "superlink": "flower-superlink",
    "serverapp": "flwr-serverapp",
    "supernode": "client.supernode",
    "clientapp": "clientapp",
    "agent": "multimix-site agent",
}
VICTIMS = tuple(PROGRAMS)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("kills"), SITES, private=False) as made:
        made.start_all()
        yield made


@pytest.fixture(scope="module")
def undisturbed(federation):
    """The model without a kill, and how long the run took."""
    began = time.monotonic()
    assert federation.run_job("undisturbed", *OPTIONS)["status"] == "finished"
    return federation.model("undisturbed"), time.monotonic() - began


@dataclass
class Run:
    """A job that is resumed whenever it died."""

    federation: Deployment
    name: str
    options: tuple[str, ...] = OPTIONS
    command: Program = field(init=False)

    def __post_init__(self):
        self.command = self.federation.begin_job(self.name, *self.options)

    @property
    def finished(self):
        try:
            return self.federation.results(self.name)["status"] == "finished"
        except (OSError, ValueError):
            return False

    def for_s(self, seconds):
        """Let it go on for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.finished:
            if self.command.process.poll() is not None:
                self.command = self.federation.begin_resume(self.name)
            time.sleep(0.1)

    def to_its_end(self):
        self.for_s(600)
        assert self.finished, self.federation.programs["server"].said[-3000:]
        self.command.stop()

    def killed(self, rng, victim):
        """Kill one process as soon as there is one; return whether the run still went on then."""
        deadline = time.monotonic() + 90
        while not self.finished:
            if kill_one(self.federation, rng, victim):
                return True
            assert time.monotonic() < deadline, f"no {victim} was there to be killed"
            self.for_s(0.1)
        return False


def kill_one(federation, rng, victim):
    site = rng.choice(SITES)
    if victim == "agent":
        federation.programs[f"agent-{site}"].kill()
        federation.start_agent(site)
        return True
    parent = federation.programs["server" if victim in {"superlink", "serverapp"} else f"connector-{site}"]
    found = those_that_are(parent.process.pid, PROGRAMS[victim])
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


# Each kind of process is killed in four of the ten seeds at least; what else is killed is drawn.
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "seed", [pytest.param(1, marks=pytest.mark.slow), *(pytest.param(n, marks=pytest.mark.chaos) for n in range(2, 11))]
)
def test_the_model_after_three_kills_is_that_of_the_undisturbed_run(federation, undisturbed, seed):
    (model, seconds), rng = undisturbed, random.Random(seed)
    run = Run(federation, f"killed-{seed}")
    for victim in (VICTIMS[seed % 5], VICTIMS[(seed // 2) % 5], rng.choice(VICTIMS)):
        run.for_s(rng.uniform(0.05, 0.3) * seconds)
        assert run.killed(rng, victim), f"the run ended before {victim} was killed"
    run.to_its_end()
    assert federation.model(run.name) == model


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_private_ledger_never_counts_less_than_was_released_however_often_agents_are_killed(tmp_path):
    """And every round that the server took was paid for and answered once."""
    rounds, rng = 10, random.Random(3)
    with deployment(tmp_path, SITES) as made:
        made.start_all()
        run = Run(made, "private", (*QUICK, *PRIVATE, f"rounds={rounds}", "quorum=2"))
        for _ in range(6):
            run.for_s(rng.uniform(1, 8))
            assert run.killed(rng, "agent"), "the run ended before"
        run.to_its_end()
        for site in SITES:
            check_ledger(made, site, rounds)


def check_ledger(made, site, rounds):
    assert made.verified(site)["truncation"] == "checked"
    ledger = read_ledger(made.site_folder(site) / "ledger", every_signature=True)
    bodies = {entry.sequence: entry.body for entry in ledger.entries}
    reserved = {number: body for number, body in bodies.items() if isinstance(body, Reservation)}
    committed = Counter(
        reserved[body.reservation].binding.round for body in bodies.values() if isinstance(body, Commit)
    )
    assert committed == dict.fromkeys(range(1, rounds + 1), 1)
