"""Machines whose certificate or clock is out of date: what each side says, and that it goes on once that is mended.

Real SuperLink, real SuperNodes. Where a clock cannot be made wrong those tests are skipped and say so.
"""

import json
import re
import socket
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from multimix.privacy.ledger import read_ledger
from server.nodes import local_address
from server.overview import overview
from server.provision.certificates import AUTHORITY_LASTS, SERVER_LASTS
from server.provision.folder import FederationSettings
from server.provision.rotation import new_federation, renew, utcnow
from server.running import flower_environment, superlink_command
from tests.connected_sites import again, connect_command, joined, running, server_running
from tests.deployment import clocks
from tests.deployment.clocks import MachineClock
from tests.deployment.federation import BIN, PRIVATE, QUICK, deployment, environment
from tests.deployment.processes import Program, wait_until
from tests.orthanc import free_port

NO_CLOCK = clocks.unavailable()
wrong_clock = pytest.mark.skipif(NO_CLOCK is not None, reason=str(NO_CLOCK))


# A federation, and one site of it


def federation(path, *, years_ago=0.0):
    """A federation that was set up so long ago."""
    port = free_port()
    settings = FederationSettings(name="lungs", address=f"127.0.0.1:{port}", bind_port=port)
    return new_federation(path, settings, now=lambda: utcnow() - timedelta(days=365 * years_ago))


@contextmanager
def superlink(folder):
    """The SuperLink without `multimix-server start`, which refuses to start one with an expired certificate."""
    folder.flower.mkdir(exist_ok=True)
    with (folder.path / "superlink.out").open("ab") as log:
        process = subprocess.Popen(
            superlink_command(folder), env=flower_environment(folder), cwd=folder.flower, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: is_listening(folder), within_s=60, what=lambda: "the SuperLink listens")
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_listening(folder):
    host, port = local_address(folder).split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def server(folder, *words):
    command = [str(BIN / "multimix-server"), *words, "-f", str(folder.path)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)


def connected_once(site, *, clock=None):
    """Try to connect once, from a machine of its own clock; return the exit code and what was said in one line."""
    command = connect_command("--site", site, "--once")
    done = subprocess.run(
        clock.command(*command) if clock else command, env=environment(), capture_output=True, text=True, timeout=100
    )
    return done.returncode, " ".join(done.stderr.split())


def is_connected(folder, name):
    return overview(again(folder), datetime.now(UTC))["sites"][name]["connected"]


def until_connected(folder, program: Program, name="alpha"):
    wait_until(lambda: is_connected(folder, name), within_s=60, what=lambda: program.said[-2000:])


def activations(program: Program):
    return program.said.count("SuperNode ID")


# Certificates


@pytest.mark.slow
def test_an_expired_server_certificate_is_named_on_both_sides_and_a_rotated_one_connects(tmp_path):
    folder = federation(tmp_path / "federation")
    site = joined(folder, tmp_path / "alpha")
    renew(folder, now=lambda: utcnow() - SERVER_LASTS - timedelta(days=3))
    expired = f"{utcnow() - timedelta(days=3):%Y-%m-%d}"
    with superlink(folder):
        code, said = connected_once(site)
    assert code == 1
    assert f"tls_expired: The server's certificate was valid until {expired}" in said
    assert "the coordinator runs `multimix-server rotate`" in said
    refused = server(folder, "start")
    assert (refused.returncode, "certificate_expired" in refused.stderr) == (2, True)
    assert server(folder, "rotate").returncode == 0
    with server_running(again(folder)), running(connect_command("--site", site), tmp_path / "alpha.log") as connector:
        until_connected(folder, connector)


@pytest.mark.slow
def test_an_expired_authority_is_named_and_replaced_by_a_new_kit(tmp_path):
    folder = federation(tmp_path / "federation", years_ago=AUTHORITY_LASTS / timedelta(days=365))
    site = joined(folder, tmp_path / "alpha")
    renew(folder, now=lambda: utcnow() - timedelta(days=30))  # valid itself
    with superlink(folder):
        code, said = connected_once(site)
    assert code == 1
    assert re.search(r"tls_expired: The certificate of the federation's authority was valid until \d{4}-", said)
    assert "`multimix-server rotate --ca` and sends this site a new kit" in said
    assert "rotate --ca" in server(folder, "start").stderr
    assert server(folder, "rotate", "--ca").returncode == 0
    joined(again(folder), site, admitted=False)  # its key stays admitted
    assert server(folder, "rotate", "--switch").returncode == 0
    with server_running(again(folder)), running(connect_command("--site", site), tmp_path / "alpha.log") as connector:
        until_connected(folder, connector)


# Clocks


@pytest.fixture(scope="module")
def lungs(tmp_path_factory):
    base = tmp_path_factory.mktemp("lungs")
    folder = federation(base / "federation")
    joined(folder, base / "alpha")
    with server_running(folder):
        yield folder


@wrong_clock
@pytest.mark.parametrize(
    ("offset", "years", "words"),
    [("+2y", 2, "tls_expired: The server's certificate was valid until"),
     ("-2y", -2, "tls_not_yet_valid: The server's certificate is valid from")],
)  # fmt: skip
def test_a_clock_that_is_years_off_is_told_with_both_dates(lungs, tmp_path, offset, years, words):
    code, said = connected_once(lungs.path.parent / "alpha", clock=MachineClock(tmp_path / "clock", offset))
    assert code == 1
    assert words in said
    year = (datetime.now(UTC) + timedelta(days=365 * years)).year
    assert f"this machine's clock, which may be wrong, says {year}-" in said


@wrong_clock
@pytest.mark.parametrize(
    ("offset", "words"), [("+1h", "ahead of"), ("-1h", "behind"), ("+20s", "ahead of"), ("-400s", "behind")]
)
def test_a_clock_by_which_flower_refuses_every_message_is_told_with_both_times(lungs, tmp_path, offset, words):
    code, said = connected_once(lungs.path.parent / "alpha", clock=MachineClock(tmp_path / "clock", offset))
    assert code == 1
    assert re.search(rf"clock_wrong: This machine's clock is \d+ s {words} the server's: [^(]+ here, [^(]+ there", said)


@wrong_clock
@pytest.mark.slow
def test_a_clock_that_becomes_wrong_cuts_the_site_off_with_that_reason_until_it_is_right(lungs, tmp_path):
    site, clock = lungs.path.parent / "alpha", MachineClock(tmp_path / "clock")
    with running(clock.command(*connect_command("--site", site)), tmp_path / "connect.log") as connector:
        until_connected(lungs, connector)
        clock.set("+1h")
        connector.says("clock_wrong: This machine", within_s=60)
        state = json.loads((site / "connector" / "connector.json").read_text())
        assert (state["state"], state["reason"]) == ("waiting", "clock_wrong")
        before = activations(connector)
        clock.set("+0")
        wait_until(lambda: activations(connector) > before, within_s=60, what=lambda: connector.said[-2000:])


@wrong_clock
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_an_agent_whose_clock_is_behind_its_ledger_refuses_and_one_ahead_waits_for_its_own_row(tmp_path):
    """Plans hold no time and need none. The ledger's rows do: they never go back."""
    sites = ("phantom-a", "phantom-b")
    with deployment(tmp_path, sites) as made:
        made.start_all()
        assert outcome(made, "behind", offset="-2y") == ("refused", "ledger_clock_back")
        assert outcome(made, "right") == ("accepted", "")
        assert outcome(made, "ahead", offset="+2y") == ("accepted", "")
        assert outcome(made, "held") == ("refused", "ledger_clock_back")
        rows = read_ledger(made.site_folder("phantom-b") / "ledger", every_signature=True).entries
        assert rows[-1].time - datetime.now(UTC) > timedelta(days=700)


def outcome(made, name, *, offset=None):
    """Run one round with the agent of phantom-b by that clock; return how its site fared."""
    made.programs["agent-phantom-b"].stop()
    if offset is None:
        made.start_agent("phantom-b")
    else:
        command = (str(BIN / "multimix-site"), "agent", "--site", str(made.site_folder("phantom-b")))
        clock = MachineClock(made.folder / f"clock-{name}", offset)
        before = made._said("agent-phantom-b").count("ready")
        agent = made.start("agent-phantom-b", "phantom-b", *clock.command(*command))
        wait_until(lambda: agent.said.count("ready") > before, within_s=60, what=lambda: agent.said[-2000:])
    results = made.run_job(name, *QUICK, *PRIVATE, "rounds=1", "quorum=1")
    assert results["rounds"][0]["sites"]["phantom-a"]["state"] == "accepted"
    record = results["rounds"][0]["sites"]["phantom-b"]
    return record["state"], record["reason"] or ""
