"""Any process of a federation may be killed at any moment: once it is back, the model is that of the undisturbed run.

Kills are drawn from a seed; `make chaos` does them.
"""

import os
import random
import signal
import time
from collections import Counter

import pytest

from multimix.privacy.entries import Commit, Reservation
from multimix.privacy.ledger import read_ledger
from tests.deployment.federation import PRIVATE, QUICK, deployment, wait_for
from tests.deployment.processes import those_that_are

SITES = ("phantom-a", "phantom-b")
OPTIONS = (*QUICK, "rounds=4", "quorum=2")
VICTIMS = ("superlink", "serverapp", "supernode", "clientapp", "agent")


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


def killed(federation, rng, victim):
    """Kill one process if it is there now; return whether it was."""
    if victim == "agent":
        program = federation.programs[f"agent-{rng.choice(SITES)}"]
        program.kill()
        federation.start_agent(program.log.stem.removeprefix("agent-"))
        return True
    of_the_server = victim in {"superlink", "serverapp"}
    parent = federation.programs["server" if of_the_server else f"connector-{rng.choice(SITES)}"]
    name = {"superlink": "flower-superlink", "serverapp": "flwr-serverapp"}.get(victim, f"{victim}")
    found = those_that_are(parent.process.pid, name)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def disturbed(federation, seed, victims, undisturbed_s):
    """Run the job with kills at random moments; return how many there were. A run that died is resumed."""
    rng, name = random.Random(seed), f"killed-{seed}"
    running, kills = federation.begin_job(name, *OPTIONS), 0
    for victim in victims:
        time.sleep(rng.uniform(0.05, 0.6) * undisturbed_s)
        kills += killed(federation, rng, victim)
    deadline = time.monotonic() + 600
    while federation_status(federation, name) != "finished":
        assert time.monotonic() < deadline, federation.programs["server"].said[-3000:]
        if running.process.poll() is not None:
            wait_for("the server is up", lambda: federation.server("status", check=False).returncode == 0)
            federation.server("resume", name, check=False, within_s=400)
        time.sleep(1)
    running.stop()
    return kills


def federation_status(federation, name):
    try:
        return federation.results(name)["status"]
    except (OSError, ValueError):
        return None


# One of each kind is killed in two runs of every five; what else is killed is drawn.
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "seed", [pytest.param(1, marks=pytest.mark.slow), *(pytest.param(n, marks=pytest.mark.chaos) for n in range(2, 12))]
)
def test_the_model_after_kills_is_that_of_the_undisturbed_run(federation, undisturbed, seed):
    model, seconds = undisturbed
    victims = [VICTIMS[seed % 5], VICTIMS[(seed // 2) % 5], random.Random(seed).choice(VICTIMS)]
    assert disturbed(federation, seed, victims, seconds) > 0
    assert federation.model(f"killed-{seed}") == model


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_private_ledger_never_counts_less_than_was_released_however_often_agents_are_killed(tmp_path):
    """And every round that the server took was paid for and answered once."""
    rounds, rng = 8, random.Random(3)
    with deployment(tmp_path, SITES) as made:
        made.start_all()
        running = made.begin_job("private", *QUICK, *PRIVATE, f"rounds={rounds}", "quorum=2")
        for _ in range(6):
            time.sleep(rng.uniform(1, 8))
            killed(made, rng, "agent")
        assert running.process.wait(timeout=900) == 0, running.said[-3000:]
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
