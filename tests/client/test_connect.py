"""The connector: what it needs, what it passes on of this machine, and when it starts nothing."""

import inspect
import json
import ssl
import threading
import types
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState, MessageEntry
from typer.testing import CliRunner

from client.connect_cli import register
from client.connector import NODE_KEY, command, connect, open_connector, read_state, supernode_environment
from client.join import NODE_KEY as JOINED_KEY
from client.supernode import NODE_KEY as SHOWN_KEY
from client.supernode import Pace, quicken, send_what_is_left
from multimix.errors import SiteError
from multimix.processes import free_port
from server.provision.folder import FederationSettings
from server.provision.rotation import new_federation
from tests.connected_sites import federation, joined


class _Silent(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@contextmanager
def answering(folder, port):
    """Answer on a port with a federation's certificate."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Silent)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.certificate, folder.certificate_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(tmp_path):
    return joined(federation(tmp_path / "federation"), tmp_path / "alpha")


def opened(site):
    return open_connector(site / "connector", site / "socket" / "agent.sock")


def attempt(connector):
    said = []
    code = connect(connector, threading.Event(), lambda reason, words: said.append((reason, words)), once=True)
    return code, said


def test_all_parts_call_the_key_by_one_name():
    assert NODE_KEY == JOINED_KEY == SHOWN_KEY


def test_a_connector_reads_its_own_folder_and_nothing_else_of_the_site(site):
    (site / "site.toml").unlink()
    (site / "site.secret").unlink()
    assert opened(site).kit.site == "alpha"


def test_a_site_that_has_not_joined_is_told_to(tmp_path):
    with pytest.raises(SiteError) as error:
        open_connector(tmp_path, tmp_path / "s")
    assert error.value.reason == "not_joined"


def test_a_key_that_others_may_read_is_not_used(site):
    (site / "connector" / NODE_KEY).chmod(0o640)
    with pytest.raises(SiteError) as error:
        opened(site)
    assert error.value.reason == "node_key_not_private"


def test_the_app_is_told_the_socket_and_the_node_listens_on_the_loopback_only(site):
    words = command(opened(site))
    assert words[words.index("--node-config") + 1] == f'agent-socket="{site / "socket" / "agent.sock"}"'
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--insecure" not in words


def test_the_app_sees_the_proxy_and_nothing_that_a_person_exported(tmp_path):
    ours = {"HTTPS_PROXY": "http://p:3128", "AWS_SECRET_ACCESS_KEY": "s", "PYTHONPATH": "/evil", "LD_PRELOAD": "/e.so"}
    shown = supernode_environment(tmp_path, ours)
    assert shown["HTTPS_PROXY"] == "http://p:3128"
    assert shown["HOME"] == shown["FLWR_HOME"] == str(tmp_path)
    assert not {"AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD"} & set(shown)
    assert shown["FLWR_TELEMETRY_ENABLED"] == "0"


def test_where_another_authority_answers_nothing_is_started_and_the_reason_is_said(tmp_path):
    port = free_port()
    folder = federation(tmp_path / "federation", port=port)
    site = joined(folder, tmp_path / "alpha")
    office = new_federation(tmp_path / "office", FederationSettings(name="office", address=f"127.0.0.1:{port}"))
    with answering(office, port):
        code, said = attempt(opened(site))
    assert code == -1
    assert "office authority" in dict(said)["tls_intercepted"]
    state = json.loads((site / "connector" / "connector.json").read_text())
    assert state["state"] == "stopped"
    assert not list((site / "connector" / "flower").iterdir())


def test_a_server_that_is_not_there_is_named_so(site):
    code, said = attempt(opened(site))
    assert code == -1
    assert "connection_refused" in dict(said)


def test_a_second_connector_of_a_site_is_refused(site):
    connector, stopped, tried = opened(site), threading.Event(), threading.Event()
    first = threading.Thread(target=connect, args=(connector, stopped, lambda reason, words: tried.set()))
    first.start()
    assert tried.wait(10)
    with pytest.raises(SiteError) as error:
        attempt(connector)
    stopped.set()
    first.join()
    assert error.value.reason == "connector_running"
    assert read_state(connector.folder).state == "stopped"


def test_the_command_says_what_is_missing(tmp_path):
    import typer

    app = typer.Typer()
    register(app)
    app.command("x")(print)
    done = CliRunner().invoke(app, ["connect", "--site", str(tmp_path)])
    assert done.exit_code == 2
    assert "not_joined" in done.stderr


def test_a_node_looks_often_after_work_and_ever_more_seldom_without():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(sleep, lambda: now[0])
    pace.sleep(0.5)  # waits for the app
    pace.sleep(3)
    assert slept == [0.1, 0.1]
    now[0] += 40
    pace.sleep(3)
    assert slept[-1] == pytest.approx(0.05 * 40.2, rel=0.01)
    now[0] += 1000
    pace.sleep(3)
    assert slept[-1] == 3  # Flower's own
    pace.sleep(0.5)
    assert slept[-1] == 0.1


def module_of(tmp_path: Path, source: str) -> types.ModuleType:
    import importlib.util

    file = tmp_path / "loop.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("loop", file)
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    return loop


def test_flowers_loop_is_quickened_in_the_version_that_is_installed():
    from flwr.supernode import start_client_internal as loop

    before = loop.time
    try:
        assert quicken(loop)
        assert isinstance(loop.time, Pace)
    finally:
        loop.time = before


@pytest.mark.parametrize(
    "source", ["import time\nx = time.monotonic()\ntime.sleep(0)\n", "from time import sleep\nsleep(0)\n"]
)
def test_a_loop_that_takes_more_of_time_than_sleep_keeps_its_own_pauses(tmp_path, source):
    loop = module_of(tmp_path, source)
    before = getattr(loop, "time", None)
    assert not quicken(loop)
    assert getattr(loop, "time", None) is before


class Loop(ModuleType):
    """Flower's loop: what it pulls, and whether it then looks for replies to send."""

    def __init__(self, *pulled):
        super().__init__("loop")
        pulls = iter(pulled)
        self._pull_and_store_message = lambda **_others: next(pulls)


def state_with(*entries):
    state = InMemoryNodeState(None)
    state.msg_store = {str(number): entry for number, entry in enumerate(entries)}
    return state


def reply(*, retrieved=False, to="order"):
    metadata = SimpleNamespace(reply_to_message_id=to)
    return MessageEntry(SimpleNamespace(metadata=metadata), is_retrieved=retrieved)


def test_a_reply_that_flowers_loop_did_not_wait_for_is_sent_though_no_order_comes():
    loop = Loop(None, None, None, None)
    send_what_is_left(loop)
    pull = loop._pull_and_store_message
    assert pull(state=state_with(reply()), receive=None) is not None
    assert pull(state=state_with(reply(retrieved=True), reply(to="")), receive=None) is None
    assert pull(state=state_with(), receive=None) is None


def test_an_order_that_came_is_waited_for_as_ever():
    loop = Loop(7)
    send_what_is_left(loop)
    assert loop._pull_and_store_message(state=state_with(reply()), receive=None) == 7


def test_flowers_loop_pulls_orders_as_is_known_here():
    source = inspect.getsource(start_client_internal.start_client_internal)
    assert "_pull_and_store_message(\n                state=state," in source
    assert "if run_id is None:" in source
