"""Who gets past the SuperLink: real server, real SuperNodes, TLS and node authentication, started by our commands."""

import json
import os
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supernode.fleet_http_client import FleetHttpClient

from multimix.contract.node_key import as_flower_keeps_it
from multimix.processes import descendants
from server.nodes import list_nodes, local_address, trusted
from server.overview import overview
from server.provision.admission import revoke
from tests.connected_sites import again, connect_command, federation, joined, running, server_command, server_running
from tests.deployment.processes import those_that_are, wait_until
from tests.nginx import NGINX, nginx_before
from tests.orthanc import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lungs(tmp_path_factory):
    """A server with sites alpha and beta admitted; gamma has joined and was not admitted."""
    base = tmp_path_factory.mktemp("lungs")
    folder = federation(base / "federation")
    for name in ("alpha", "beta", "gamma"):
        joined(folder, base / name, admitted=name != "gamma")
    with server_running(again(folder)):
        yield again(folder)


def connector(folder, name, *more):
    site = folder.path.parent / name
    return running(connect_command("--site", site, *more), site.with_suffix(".log"))


def sites(folder):
    return overview(again(folder), datetime.now(UTC))["sites"]


def until_connected(folder, name, *, within_s=60):
    wait_until(lambda: sites(folder)[name]["connected"], within_s=within_s, what=lambda: f"{name}: {sites(folder)}")


def test_admitted_sites_connect_and_are_away_as_soon_as_they_stop(lungs):
    with connector(lungs, "alpha") as alpha, connector(lungs, "beta"):
        until_connected(lungs, "alpha")
        until_connected(lungs, "beta")
        assert alpha.stop() == 0
        assert not sites(lungs)["alpha"]["connected"]
        assert sites(lungs)["beta"]["connected"]


def test_a_connector_that_was_killed_is_back_long_before_its_heartbeats_run_out(lungs):
    with connector(lungs, "alpha") as alpha:
        before = activations(alpha)
        wait_until(lambda: activations(alpha) > before, within_s=60, what=lambda: alpha.said[-2000:])
        (supernode,) = those_that_are(alpha.process.pid, "client.supernode")
        os.kill(supernode, signal.SIGKILL)
        # Flower's own SuperNode is refused for up to 60 s: two heartbeats.
        wait_until(lambda: activations(alpha) > before + 1, within_s=30, what=lambda: alpha.said[-2000:])


def test_nothing_outlives_a_connector_that_was_killed(lungs):
    with connector(lungs, "beta") as beta:
        before = activations(beta)
        wait_until(lambda: activations(beta) > before, within_s=60, what=lambda: beta.said[-2000:])
        started = descendants(beta.process.pid)
        assert len(started) >= 3  # SuperNode, its SuperExec, and what forks apps
        beta.process.kill()
        wait_until(lambda: not any(map(alive, started)), within_s=20, what=lambda: "something is alive")


def test_a_site_that_was_not_admitted_is_told_so_and_gets_nowhere(lungs):
    with connector(lungs, "gamma", "--once") as gamma:
        assert gamma.process.wait(timeout=60) == 1
        assert "not_admitted" in gamma.said
    public = (lungs.path.parent / "gamma" / "connector" / "node.pub").read_text().strip()
    assert as_flower_keeps_it(public) not in {node.key for node in list_nodes(lungs)}


def test_a_revoked_site_is_turned_away_while_connected_and_stays_out(lungs, tmp_path):
    with connector(lungs, "beta") as beta:
        until_connected(lungs, "beta")
        revoke(lungs.path, "beta")
        beta.says("not_admitted", within_s=60)
    assert not sites(lungs)["beta"]["connected"]
    node = next(node for node in list_nodes(lungs) if node.key == again(lungs).settings.sites["beta"].flower_key)
    assert not node.registered


def test_a_client_without_a_key_is_refused(lungs):
    client = FleetHttpClient.from_server_address(local_address(lungs), False, str(lungs.ca), [])
    with client, pytest.raises(httpx.HTTPStatusError) as refused:
        client.ActivateNode(ActivateNodeRequest(public_key=b"none", heartbeat_interval=30))
    assert refused.value.response.status_code == 401


def test_a_plain_text_client_gets_no_answer(lungs):
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{local_address(lungs)}/health", timeout=5)


def test_a_client_that_trusts_other_authorities_does_not_go_on(lungs):
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"https://{local_address(lungs)}/health", timeout=5)
    assert httpx.get(f"https://{local_address(lungs)}/health", verify=trusted(lungs), timeout=5).is_success


def test_a_second_server_of_the_federation_is_refused(lungs):
    done = subprocess.run(server_command("start", "-f", lungs.path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "server_running" in done.stderr


def test_status_health_and_metrics_agree_and_name_no_site(lungs):
    with connector(lungs, "alpha"):
        until_connected(lungs, "alpha")
        done = subprocess.run(server_command("status", "-f", lungs.path, "--json"), capture_output=True, text=True)
        assert (done.returncode, json.loads(done.stdout)["up"]) == (0, True)
        base = f"http://127.0.0.1:{lungs.settings.bind_port + 1}"
        assert httpx.get(f"{base}/health").json() == {"up": True}
        metrics = httpx.get(f"{base}/metrics").text
        assert "multimix_sites_connected 1.0" in metrics
        assert "alpha" not in metrics


@pytest.mark.skipif(NGINX is None, reason="needs nginx (apt install nginx-light)")
def test_through_the_proxy_sites_connect_and_the_control_api_cannot_be_reached(tmp_path):
    folder = federation(tmp_path / "federation", address=f"127.0.0.1:{free_port()}")
    joined(folder, tmp_path / "alpha")
    with server_running(again(folder)), nginx_before(folder, tmp_path / "nginx"), connector(folder, "alpha"):
        until_connected(folder, "alpha")
        public, inside = f"https://{folder.settings.address}", f"https://{local_address(folder)}"
        with httpx.Client(verify=trusted(folder), headers={"Content-Type": "application/protobuf"}) as client:
            assert client.post(f"{inside}/v1/control/list-nodes", content=b"").status_code != 404
            for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task"):
                assert client.post(f"{public}{path}", content=b"").status_code == 404


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def activations(program):
    return program.said.count("SuperNode ID")
