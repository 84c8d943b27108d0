"""Flower's SuperNode as the connector runs it: `python -m client.supernode FOLDER [options of flower-supernode]`.

Five things are different from `flower-supernode`, whose own code runs unchanged (read in flwr 1.41):

* A SuperNode that ended without a word stays "online" for the SuperLink until two heartbeats of 30 s are missed, and a
  second one with its key is refused until then (`activate_node` takes nodes that are registered or offline). SIGTERM
  lets it sign off; kill -9 does not. So here it first signs off whoever held its place. `node.id` names the place.
* An idle SuperNode sleeps 3 s between two looks for a message, and 0.5 s between two looks for the app's reply. Here it
  sleeps a twentieth of the time that nothing came, at least 0.1 s and at most Flower's own pause. Where Flower's loop
  is not the one known here, its pauses stay as they are.
* An order whose ServerApp was killed while it sent it is given up after a minute, here and in the app; Flower waits for
  its objects for an hour or two, and meanwhile takes no other order.
* A reply that Flower's loop did not wait for is sent all the same; see `send_what_is_left`.
* The processes that run the app are forked from one that has imported what they need; see client/app_starter.py.
"""

import ast
import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.app_starter import put_in_place, wait_less
from multimix.contract.kit import AUTHORITY
from multimix.files import write_atomically
from multimix.processes import start

NODE_KEY: Final = "node.key"  # as client/join.py names it; that imports all of intake
NOT_ADMITTED: Final = 3  # exit code: the server does not take this key
SERVER_AWAY: Final = 4  # exit code: the server cannot be reached
_NODE_ID: Final = "node.id"
_SHORTEST_S, _SHARE = 0.1, 0.05
_SOME_RUN: Final = 0  # Flower's loop asks only whether there is one
_IDLE_S: Final = 1.0  # Flower's pauses from here on are those of a node without work


class Pace:
    """Stands in for the module `time` in Flower's loop, of which that uses `sleep` only."""

    def __init__(
        self, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sleep, self._clock, self._worked = sleep, clock, clock()

    def sleep(self, seconds: float) -> None:
        """Sleep at most so long; shorter while there is work, or was a moment ago."""
        if seconds < _IDLE_S:
            self._worked = self._clock()
        idle_s = self._clock() - self._worked
        self._sleep(min(seconds, max(_SHORTEST_S, _SHARE * idle_s)))


def quicken(loop: ModuleType) -> bool:
    """Give Flower's loop our pace where `time.sleep` is all that it takes from `time`; say whether it is."""
    tree = ast.parse(inspect.getsource(loop))
    nodes = list(ast.walk(tree))
    uses = [node for node in nodes if isinstance(node, ast.Name) and node.id == "time"]
    calls = [
        node.func.value
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep"
    ]
    known = bool(uses) and all(any(use is call for call in calls) for use in uses)
    if known and getattr(loop, "time", None) is time:
        loop.time = Pace()  # type: ignore[attr-defined]
        return True
    return False


def send_what_is_left(loop: ModuleType) -> None:
    """Have Flower's loop send the replies that it did not wait for: to an order whose run ended while it came.

    Flower takes the first reply that it finds for that of the last order, so after such a one it sends each reply only
    when the next order has come: to the server the site is silent for ever.
    """
    pull = vars(loop)["_pull_and_store_message"]

    def pull_or_send(*, state: Any, **others: Any) -> int | None:
        run: int | None = pull(state=state, **others)
        return _SOME_RUN if run is None and _has_replies(state) else run

    vars(loop)["_pull_and_store_message"] = pull_or_send


def _has_replies(state: Any) -> bool:
    entries = list(getattr(state, "msg_store", {}).values())
    return any(not entry.is_retrieved and entry.message.metadata.reply_to_message_id for entry in entries)


def take_place(folder: Path, address: str) -> int:
    """Sign off whoever holds this key's place at the SuperLink; return 0, NOT_ADMITTED or SERVER_AWAY."""
    key = load_ssh_private_key((folder / NODE_KEY).read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return NOT_ADMITTED
    interceptors = [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())]
    with FleetHttpClient.from_server_address(address, False, str(folder / AUTHORITY), interceptors) as client:
        try:
            if _signed_off(client, folder):
                return 0
            seat = ActivateNodeRequest(
                public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
            )
            number = client.ActivateNode(seat).node_id
            write_atomically(folder / _NODE_ID, str(number).encode())
            client.DeactivateNode(DeactivateNodeRequest(node_id=number))
        except httpx.HTTPStatusError as refused:
            return SERVER_AWAY if refused.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR else NOT_ADMITTED
        except (httpx.HTTPError, OSError):
            return SERVER_AWAY
    return 0


def _signed_off(client: FleetHttpClient, folder: Path) -> bool:
    try:
        number = int((folder / _NODE_ID).read_text("ascii"))
        client.DeactivateNode(DeactivateNodeRequest(node_id=number))
    except (OSError, ValueError, httpx.HTTPStatusError):  # no place known, or nobody is in it
        return False
    return True


def main(arguments: list[str]) -> int:
    """Take the place, then run Flower's SuperNode to its end."""
    folder, options = Path(arguments[0]), arguments[1:]
    if refused := take_place(folder, options[options.index("--superlink") + 1]):
        return refused
    _start_apps_quickly(folder / "flower")
    if not quicken(start_client_internal):
        sys.stderr.write("this version of Flower keeps its own pauses: rounds take some seconds more\n")
    wait_less(start_client_internal)
    send_what_is_left(start_client_internal)
    sys.argv = ["flower-supernode", *options]
    flower_supernode()
    return 0


def _start_apps_quickly(home: Path) -> None:
    """Have apps forked from a process that has imported what they need; it ends with this one."""
    starter = home / "starter.sock"
    starter.unlink(missing_ok=True)
    put_in_place(home / "bin", starter)
    start([sys.executable, "-P", "-m", "client.app_starter", str(starter)], env=dict(os.environ), cwd=home)
    os.environ["PATH"] = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
