"""The hosts of the scenarios are apart: they meet over the switch only, and a pulled cable cuts one of them off."""

import subprocess
import sys

import pytest

from tests.deployment.hosts import Network, unavailable

pytestmark = pytest.mark.netns

_ANSWER = "import socket;s=socket.create_server(('',7000));c,_=s.accept();c.sendall(b'here');c.close()"
_ASK = "import socket,sys;s=socket.create_connection((sys.argv[1],7000),timeout=2);print(s.recv(9).decode())"


@pytest.fixture
def network():
    with Network() as network:
        yield network


def test_hosts_reach_each_other_by_address(network, tmp_path):
    server, hospital = network.host("server"), network.host("hospital")
    with (tmp_path / "log").open("wb") as log:
        process = server.start([sys.executable, "-c", _ANSWER], env={}, log=log)
    for _ in range(50):
        asked = hospital.run(sys.executable, "-c", _ASK, server.address)
        if not asked.returncode:
            break
    assert asked.stdout.strip() == "here"
    process.wait(timeout=5)


def test_a_host_without_its_cable_reaches_nobody_until_it_is_plugged_in_again(network):
    server, hospital = network.host("server"), network.host("hospital")

    def reaches():
        return hospital.run("ip", "neigh", "flush", "all"), hospital.run(sys.executable, "-c", _PING, server.address)

    assert reaches()[1].stdout.strip() == "refused"  # an answer of the host: nobody listens there
    hospital.unplug()
    assert reaches()[1].stdout.strip() == "silent"
    hospital.plug_in()
    assert reaches()[1].stdout.strip() == "refused"


def test_nothing_outside_is_reached(network):
    asked = network.host("hospital").run(sys.executable, "-c", _PING, "192.0.2.1")
    assert asked.stdout.strip() == "silent"


def test_namespaces_are_gone_afterwards():
    with Network() as network:
        network.host("server")
        names = [network.switch, network.hosts["server"].namespace]
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not any(name in listed for name in names)
    assert unavailable() is None


_PING = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7001), timeout=2)
except ConnectionRefusedError:
    print("refused")
except OSError:
    print("silent")
"""
