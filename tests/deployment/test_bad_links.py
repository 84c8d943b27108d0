"""A hospital that reaches the server by the office's proxy only, and one at the end of a slow line: both train."""

import subprocess
from contextlib import contextmanager

import pytest

from tests.deployment.federation import BIN, PRIVATE, QUICK, deployment, wait_for
from tests.deployment.hosts import Network, ip
from tests.deployment.test_networks import python_path
from tests.orthanc import free_port

SITES = ("phantom-a", "phantom-b")
PROXY_PORT = 3128


@contextmanager
def proxy(made, name, kind, *arguments):
    """Run a proxy on a host; yield the file with what it says."""
    host, log = made.host(name), made.folder / f"{name}.proxy.log"
    command = [str(BIN / "python"), "-m", "tests.deployment.proxies", kind, *arguments]
    with log.open("wb") as output:
        line = host.command(*command) if host else command
        process = subprocess.Popen(line, env=python_path(), stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for("the proxy listens", lambda: "ready" in log.read_text())
        yield log
    finally:
        process.kill()
        process.wait()


def states(results):
    return [{site: record["state"] for site, record in each["sites"].items()} for each in results["rounds"]]


# The office's proxy


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Phantom-a has no route to the server, and an office host has a proxy."""
    with Network() as network, deployment(tmp_path_factory.mktemp("proxied"), SITES, network=network) as made:
        office = network.host("office").address
        network.host("phantom-a")
        ip("-n", network.host("phantom-a").namespace, "route", "add", "blackhole", f"{made.address}/32")
        with proxy(made, "office", "connect", f"{office}:{PROXY_PORT}"):
            yield made


def told(made, **proxies):
    made.env["phantom-a"] = proxies


def connects_once(made):
    folder = str(made.site_folder("phantom-a"))
    command = (str(BIN / "multimix-site"), "connect", "--once", "--site", folder)
    done = made.run("phantom-a", *command, check=False, within_s=60)
    return done.returncode, done.stderr


def let_through(made):
    return (made.folder / "office.proxy.log").read_text().count(f"CONNECT {made.address}:{made.port}")


@pytest.mark.netns
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_hospital_without_a_route_trains_through_the_offices_proxy_only(hospital):
    told(hospital, HTTPS_PROXY=f"http://{hospital.host('office').address}:{PROXY_PORT}")
    hospital.start_all()
    results = hospital.run_job("proxied", *QUICK, *PRIVATE)
    assert states(results) == [dict.fromkeys(SITES, "accepted")] * 2
    assert let_through(hospital) >= 2  # of the connector, who looks first, and of the SuperNode
    there = ("python", "-c", f"import socket; socket.create_connection(({hospital.address!r}, {hospital.port}), 5)")
    assert hospital.run("phantom-a", str(BIN / there[0]), *there[1:], check=False).returncode != 0


@pytest.mark.netns
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_server_that_no_proxy_exempts_is_not_asked_for_at_the_proxy(hospital):
    if "connector-phantom-a" in hospital.programs:
        hospital.programs["connector-phantom-a"].stop()
    told(hospital, HTTPS_PROXY=f"http://{hospital.host('office').address}:{PROXY_PORT}", NO_PROXY=f"{hospital.address}")
    before = let_through(hospital)
    code, said = connects_once(hospital)
    assert (code, "unreachable" in said) == (1, True)
    namespace = hospital.host("phantom-a").namespace
    ip("-n", namespace, "route", "delete", "blackhole", f"{hospital.address}/32")
    if "server" not in hospital.programs:
        hospital.start_server()
    hospital.start_connector("phantom-a")
    wait_for("it is connected", lambda: hospital.connected() >= 1)
    assert let_through(hospital) == before


# The slow line


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_hospitals_behind_a_slow_line_take_part_in_every_round(tmp_path):
    with deployment(tmp_path, SITES) as made:
        line = f"127.0.0.1:{free_port()}"
        for site in SITES:
            kit = made.site_folder(site) / "connector" / "kit.json"
            kit.write_text(kit.read_text().replace(f"{made.address}:{made.port}", line))
            assert line in kit.read_text()
        with proxy(made, "line", "slow", line, f"{made.address}:{made.port}", "0.2", "200000"):
            made.start_all()
            results = made.run_job("slow", *QUICK, *PRIVATE)
    assert states(results) == [dict.fromkeys(SITES, "accepted")] * 2
    assert results["status"] == "finished"
