"""Any process of a federation may be killed at any moment: once it is back, the model is that of the undisturbed run.

Kills are drawn from a seed; `make chaos` does them.
"""

import os
import random
import signal
import time

import pytest

from tests.deployment.federation import QUICK, deployment, wait_for
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


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_model_after_kills_is_that_of_the_undisturbed_run(federation, undisturbed, seed):
    model, seconds = undisturbed
    victims = random.Random(seed).sample(VICTIMS, 3)
    assert disturbed(federation, seed, victims, seconds) > 0
    assert federation.model(f"killed-{seed}") == model


@pytest.mark.chaos
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(100, 110))
def test_twenty_kills_leave_the_model_as_it_is(federation, undisturbed, seed):
    model, seconds = undisturbed
    victims = [VICTIMS[seed % 5], VICTIMS[(seed // 2) % 5], random.Random(seed).choice(VICTIMS)]
    assert disturbed(federation, seed, victims, seconds) > 0
    assert federation.model(f"killed-{seed}") == model
