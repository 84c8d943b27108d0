"""Flower's Grid over a real network: the part that we use, and how replies are taken from it without standing still.

A reply can be seen as soon as its upload begins, and Flower's `pull_messages` then waits for the rest, for hours where
a site lets it. So every message is pulled by a thread of its own: a site that stalls, or sends what cannot be read,
costs no other site its reply. And it pulls whatever a site sent, of any size: here a reply is dropped as soon as it is
larger than any honest one.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx
from flwr.app import Message

from server.log import log

_PATIENCE: Final = 2  # heartbeats that a node may miss: flwr.common.constant.HEARTBEAT_PATIENCE
_A_LOOK_S: Final = 1.0
MOST_BESIDE_WEIGHTS: Final = 64 << 20  # bytes of a reply: report, pictures, and what goes around them


class NodeInfo(Protocol):
    """What Flower tells of a node; see flwr/proto/node_pb2.pyi."""

    node_id: int
    public_key: bytes
    last_activated_at: str
    online_until: float
    heartbeat_interval: float


class NetworkGrid(Protocol):
    """The part of Flower's Grid that a real network needs."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes that are online."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids, none where the SuperLink did not take one."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what has come in reply to these messages, once."""
        ...


@dataclass(frozen=True)
class Node:
    """A node that is online."""

    key: bytes  # public, PEM
    activated: str  # when it last came online
    seen_s: float  # seconds since 1970: its last heartbeat


def nodes_online(grid: NetworkGrid) -> dict[int, Node]:
    """Return the nodes that are online, by their number."""
    return {
        node.node_id: Node(
            bytes(node.public_key), node.last_activated_at, node.online_until - _PATIENCE * node.heartbeat_interval
        )
        for node in grid.get_nodes()
    }


class ReplyTooLargeError(Exception):
    """A site sends more than any honest one."""


class _Counted:
    """Flower's client at the SuperLink while it pulls one reply: it hands on so many bytes, and no more."""

    def __init__(self, client: Any, most_bytes: int) -> None:
        self._client, self._left, self._lock = client, most_bytes, threading.Lock()

    def PullObject(self, request: Any) -> Any:  # noqa: N802  (as Flower's)
        response = self._client.PullObject(request)
        with self._lock:
            self._left -= len(response.object_content)
            if self._left < 0:
                raise ReplyTooLargeError
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class _Bounded:
    """Flower's grid with another client; the rest of it is shared."""

    def __init__(self, grid: NetworkGrid, client: _Counted) -> None:
        self._grid, self._runtime_client = grid, client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def pull_bounded(grid: NetworkGrid, identity: str, most_bytes: int) -> list[Message]:
    """Return what came in reply to a message; ReplyTooLargeError where that is more than `most_bytes`."""
    client = getattr(grid, "_runtime_client", None)
    if client is None:  # no network of Flower's
        return list(grid.pull_messages([identity]))
    bounded: Any = _Bounded(grid, _Counted(client, most_bytes))
    return list(type(grid).pull_messages(bounded, [identity]))


@dataclass
class _Pull:
    """One look for the reply to one message, in a thread of its own."""

    done: threading.Event = field(default_factory=threading.Event)
    replies: list[Message] | None = None
    failure: BaseException | None = None

    def run(self, grid: NetworkGrid, identity: str, most_bytes: int) -> None:
        try:
            self.replies = pull_bounded(grid, identity, most_bytes)
        except BaseException as failure:  # noqa: BLE001  (judged by who asked)
            self.failure = failure
        finally:
            self.done.set()


@dataclass
class Puller:
    """Takes replies, message by message."""

    grid: NetworkGrid
    most_bytes: int = MOST_BESIDE_WEIGHTS
    _under_way: dict[str, _Pull] = field(default_factory=dict)

    def replies(self, identities: Iterable[str]) -> dict[str, Message | None]:
        """Return the reply to each message that has one; None for one that cannot be read.

        Does not wait for a reply that is still being uploaded: it comes at a later look.

        Raises:
            httpx.HTTPError: the SuperLink cannot be reached.
        """
        asked = list(identities)
        for identity in asked:
            if identity not in self._under_way:
                self._start(identity)
        until = time.monotonic() + _A_LOOK_S
        came: dict[str, Message | None] = {}
        for identity in asked:
            pull = self._under_way[identity]
            if pull.done.wait(max(0.0, until - time.monotonic())):
                del self._under_way[identity]
                came |= _result(identity, pull)
        return came

    def _start(self, identity: str) -> None:
        pull = self._under_way[identity] = _Pull()
        # Not a thread pool: its threads would keep the process alive for as long as a site stalls.
        threading.Thread(target=pull.run, args=(self.grid, identity, self.most_bytes), daemon=True).start()


def _result(identity: str, pull: _Pull) -> dict[str, Message | None]:
    if pull.failure is None:
        return dict.fromkeys([identity], pull.replies[-1]) if pull.replies else {}
    if isinstance(pull.failure, httpx.HTTPError) or not isinstance(pull.failure, Exception):
        raise pull.failure
    log.warning("a reply cannot be read (%s)", type(pull.failure).__name__)
    return {identity: None}
