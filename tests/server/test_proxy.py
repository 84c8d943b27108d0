"""The door: real nginx in front of an upstream that writes down what reaches it."""

import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from multimix.processes import free_port
from server.nodes import trusted
from server.provision.folder import FederationSettings
from server.provision.rotation import new_federation
from server.proxy import BODY_LIMIT_MIB, PATHS
from tests.nginx import NGINX, nginx_before

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx (apt install nginx-light)")


class Upstream:
    """Stands in for the SuperLink; notes the paths that reach it."""

    def __init__(self, folder):
        seen = self.seen = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                seen.append((self.path, len(body)))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def do_GET(self):
                seen.append((self.path, 0))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", folder.settings.bind_port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder.certificate, folder.certificate_key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def federation_behind_a_door(path):
    settings = FederationSettings(name="lungs", address=f"127.0.0.1:{free_port()}", bind_port=free_port())
    return new_federation(path, settings)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    base = tmp_path_factory.mktemp("door")
    folder = federation_behind_a_door(base / "federation")
    upstream = Upstream(folder)
    with (
        nginx_before(folder, base / "nginx"),
        httpx.Client(base_url=f"https://{folder.settings.address}", verify=trusted(folder)) as client,
    ):
        yield client, upstream, base / "nginx"
    upstream.close()


@pytest.mark.parametrize("path", PATHS)
def test_what_a_supernode_asks_for_is_passed_on(door, path):
    client, upstream, _ = door
    assert client.post(f"/v1/fleet/{path}", content=b"x" * 100).status_code == 200
    assert upstream.seen[-1] == (f"/v1/fleet/{path}", 100)


def test_flowers_own_client_asks_for_these_paths_and_two_that_are_the_coordinators():
    import inspect
    import re

    from flwr.supernode.fleet_http_client import FleetHttpClient

    asked = set(re.findall(r'"/v1/fleet/([a-z-]+)"', inspect.getsource(FleetHttpClient)))
    assert asked == {*PATHS, "register-node", "unregister-node"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/pull-messages%0a/v1/control/list-nodes",
        "//v1/control/list-nodes",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ],
)
def test_nothing_else_reaches_the_superlink(door, path):
    client, upstream, _ = door
    before = len(upstream.seen)
    for method in ("POST", "GET"):
        request = httpx.Request(method, client.base_url.join("/"), content=b"" if method == "POST" else None)
        request.url = request.url.copy_with(raw_path=path.encode())
        assert client.send(request).status_code in {400, 404, 405}
    assert len(upstream.seen) == before


def test_a_path_that_is_written_in_a_roundabout_way_reaches_the_superlink_as_what_it_is(door):
    client, upstream, _ = door
    request = httpx.Request("POST", client.base_url.join("/"), content=b"x")
    request.url = request.url.copy_with(raw_path=b"/v1/control/../fleet/get-run")
    assert client.send(request).status_code == 200
    assert upstream.seen[-1][0] == "/v1/fleet/get-run"


def test_other_methods_are_refused(door):
    client, upstream, _ = door
    before = len(upstream.seen)
    assert client.get("/v1/fleet/get-run").status_code == 403
    assert len(upstream.seen) == before


def test_a_body_that_is_declared_too_large_is_refused_by_its_header(door):
    client, upstream, _ = door
    before = len(upstream.seen)
    head = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: a\r\nContent-Length: {(BODY_LIMIT_MIB + 1) << 20}\r\n\r\n"
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection((client.base_url.host, client.base_url.port), timeout=10)
    with plain, blind.wrap_socket(plain) as secure:
        secure.sendall(head.encode())
        assert secure.recv(100).startswith(b"HTTP/1.1 413")
    assert len(upstream.seen) == before


def test_an_object_of_flowers_size_passes(door):
    client, upstream, _ = door
    assert client.post("/v1/fleet/push-object", content=bytes(6 << 20)).status_code == 200
    assert upstream.seen[-1] == ("/v1/fleet/push-object", 6 << 20)


def test_what_is_passed_on_is_not_written_down(door):
    client, _, base = door
    client.post("/v1/fleet/confirm-message-received", content=b"words of a site")
    logs = b"".join(file.read_bytes() for file in base.rglob("*") if file.is_file() and file.suffix != ".conf")
    assert b"confirm-message-received" not in logs
    assert b"words of a site" not in logs


def test_a_superlink_that_another_authority_vouches_for_is_not_passed_on_to(tmp_path):
    folder = federation_behind_a_door(tmp_path / "federation")
    other = new_federation(tmp_path / "other", folder.settings)
    upstream = Upstream(other)
    with nginx_before(folder, tmp_path / "nginx"):
        answer = httpx.post(f"https://{folder.settings.address}/v1/fleet/get-run", verify=trusted(folder), content=b"")
    upstream.close()
    assert answer.status_code == 502
    assert upstream.seen == []
