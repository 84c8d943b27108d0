"""Three hospitals, each a host of its own, and what networks do to them: every case ends in a stated outcome.

The agents have no network at all. Where namespaces are not permitted these tests are skipped and say so; the same
programs run on the loopback in the other tests.
"""

import json
from pathlib import Path

import pytest

from tests.deployment.federation import BIN, PRIVATE, QUICK, deployment, environment, wait_for
from tests.deployment.hosts import Network
from tests.deployment.test_proxies import certificate

pytestmark = [pytest.mark.netns, pytest.mark.chaos, pytest.mark.timeout(1500)]

SITES = ("phantom-a", "phantom-b", "phantom-c")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Network() as network, deployment(tmp_path_factory.mktemp("net"), SITES, network=network) as made:
        made.start_all()
        yield made


def states(results):
    return [{site: record["state"] for site, record in each["sites"].items()} for each in results["rounds"]]


def test_hospitals_apart_train_privately_and_every_ledger_verifies(federation):
    results = federation.run_job("private", *QUICK, *PRIVATE)
    assert states(results) == [dict.fromkeys(SITES, "accepted")] * 2
    assert federation.model("private")
    for site in SITES:
        verified = federation.run(site, str(BIN / "multimix-audit"), "verify", str(ledger(federation, site)),
                                  "--key", key_of(federation, site), "--json")  # fmt: skip
        assert json.loads(verified.stdout)["violations"] == []


def test_the_agent_has_no_network_not_even_a_loopback(federation):
    pid = federation.programs["agent-phantom-a"].process.pid
    devices = federation.run("phantom-a", "nsenter", "--target", str(pid), "--net", "ip", "-brief", "link").stdout
    assert [line.split()[:2] for line in devices.splitlines()] == [["lo", "DOWN"]]


def test_a_hospital_whose_cable_is_pulled_in_a_round_and_plugged_in_again_is_in_the_next(federation):
    running = federation.begin_job("cut", *QUICK, *PRIVATE, "rounds=4", "deadline-s=40", "quorum=2")
    wait_for("the first round is done", lambda: rounds_done(federation, "cut") >= 1, within_s=200)
    hospital = federation.host("phantom-c")
    hospital.unplug()
    began = rounds_done(federation, "cut")
    wait_for("a round without it", lambda: rounds_done(federation, "cut") > began, within_s=150)
    hospital.plug_in()
    assert running.process.wait(timeout=400) == 0
    found = states(federation.results("cut"))
    assert [each["phantom-a"] for each in found] == ["accepted"] * 4
    assert [each["phantom-c"] for each in found].count("absent") >= 1
    federation.wait_connected(3)


def test_a_server_that_shows_another_certificate_is_not_trusted(federation):
    """As a proxy that breaks TLS open does."""
    office, server = federation.host("office"), federation.host("server")
    own = certificate(federation.folder, "office", office.address)
    log = (federation.folder / "intercept.log").open("wb")
    proxy = office.start([str(BIN / "python"), "-m", "tests.deployment.proxies", "intercept", f"{office.address}:8443",
                          f"{server.address}:{federation.port}", *map(str, own)], env=python_path(), log=log)  # fmt: skip
    try:
        wait_for("the proxy listens", lambda: "ready" in (federation.folder / "intercept.log").read_text())
        folder = federation.folder / "intercepted"
        federation.run("phantom-a", "cp", "-r", str(federation.site_folder("phantom-a") / "connector"), str(folder))
        kit = folder / "kit.json"
        kit.write_text(kit.read_text().replace(f"{federation.address}:{federation.port}", f"{office.address}:8443"))
        done = federation.run("phantom-a", str(BIN / "multimix-site"), "connect", "--once", "--folder", str(folder),
                              "--socket", "/nowhere", check=False, within_s=120)  # fmt: skip
        assert done.returncode == 1
        assert "intercept" in done.stderr.lower() + done.stdout.lower()
    finally:
        proxy.kill()
        proxy.wait()
        log.close()


def rounds_done(federation, name):
    try:
        return len(federation.results(name)["rounds"])
    except (OSError, ValueError):
        return 0


def ledger(federation, site):
    return federation.site_folder(site) / "ledger" / "ledger.jsonl"


def key_of(federation, site):
    first = json.loads(ledger(federation, site).read_text().splitlines()[0])
    return json.loads(first["document"])["body"]["public_key"]


def python_path():
    return environment(PYTHONPATH=str(Path(__file__).parents[2]))
