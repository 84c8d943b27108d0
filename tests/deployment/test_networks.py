"""Three hospitals, each a host of its own, and what networks do to them: every case ends in a stated outcome.

The agents have no network at all. Where namespaces are not permitted these tests are skipped and say so; the same
programs run on the loopback in the other tests.
"""

import json
import time
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
    assert [federation.verified(site)["counts"]["commit"] for site in SITES] == [2, 2, 2]


def test_the_agent_has_no_network_not_even_a_loopback(federation):
    pid = federation.programs["agent-phantom-a"].process.pid
    devices = federation.run("phantom-a", "nsenter", "--target", str(pid), "--net", "ip", "-brief", "link").stdout
    assert [line.split()[:2] for line in devices.splitlines()] == [["lo", "DOWN"]]


def test_hospitals_reach_the_proxy_and_it_alone_reaches_the_server(federation):
    kit = json.loads((federation.site_folder("phantom-a") / "connector" / "kit.json").read_text())
    assert kit["address"] == f"{federation.host('proxy').address}:{federation.port}"
    for path in ("/v1/control/list-nodes", "/v1/runtime/acquire-task", "/v1/fleet/../control/list-nodes"):
        assert federation.run("phantom-a", *posts(federation, path)).stdout.strip() == "404"


def test_a_network_cut_of_two_minutes_in_a_round_costs_time_and_no_site(federation):
    running = federation.begin_job("two-minutes", *QUICK, *PRIVATE, "rounds=3", "deadline-s=400", "quorum=3")
    wait_for("the first round is done", lambda: rounds_done(federation, "two-minutes") >= 1, within_s=200)
    hospital = federation.host("phantom-c")
    hospital.unplug()
    time.sleep(120)
    hospital.plug_in()
    assert running.process.wait(timeout=600) == 0, running.said[-3000:]
    assert states(federation.results("two-minutes")) == [dict.fromkeys(SITES, "accepted")] * 3
    federation.wait_connected(3)


def test_a_hospital_that_is_cut_off_beyond_the_deadline_costs_one_and_is_taken_in_when_it_is_back(federation):
    running = federation.begin_job("cut", *QUICK, *PRIVATE, "rounds=6", "deadline-s=40", "quorum=2")
    wait_for("the first round is done", lambda: rounds_done(federation, "cut") >= 1, within_s=200)
    hospital = federation.host("phantom-c")
    hospital.unplug()
    began = rounds_done(federation, "cut")
    wait_for("a round without it", lambda: rounds_done(federation, "cut") > began + 1, within_s=150)
    hospital.plug_in()
    assert running.process.wait(timeout=400) == 0, running.said[-3000:]
    results = federation.results("cut")
    found = states(results)
    assert [each["phantom-a"] for each in found] == ["accepted"] * 6
    absent = [each["seconds"] for each in results["rounds"] if each["sites"]["phantom-c"]["state"] == "absent"]
    assert sum(seconds > 35 for seconds in absent) == 1, absent
    federation.wait_connected(3)


def test_a_server_that_shows_another_certificate_is_not_trusted(federation):
    """As a proxy that breaks TLS open does."""
    office, server = federation.host("office"), federation.host("proxy")
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


_POST = """
import http.client, ssl, sys
host, port, path, authority = sys.argv[1:]
asked = http.client.HTTPSConnection(host, int(port), context=ssl.create_default_context(cafile=authority), timeout=20)
asked.request("POST", path)
print(asked.getresponse().status)
"""


def posts(federation, path):
    """Return the command that sends a request, its path as it stands, and prints the status of the answer."""
    authority = str(federation.federation / "ca.pem")
    return str(BIN / "python"), "-c", _POST, federation.host("proxy").address, str(federation.port), path, authority


def rounds_done(federation, name):
    try:
        return len(federation.results(name)["rounds"])
    except (OSError, ValueError):
        return 0


def python_path():
    return environment(PYTHONPATH=str(Path(__file__).parents[2]))
