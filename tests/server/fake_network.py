"""A real network that needs no network: nodes that come and go, answers that take their time, and a clock by hand.

`at` plans what happens when; sleeping moves the clock and makes it happen. An order that a node had taken is lost when
the node starts anew, as with a SuperNode.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache

from fake_sites import FakeSite
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from multimix.contract.node_key import as_flower_keeps_it, new_node_key, public_half
from server.provision.folder import AdmittedSite, FederationSettings
from server.roster import Roster

START = datetime(2026, 11, 1, tzinfo=UTC)


@cache
def key_of(name: str) -> str:
    """The public key of a site, made once in a test session."""
    del name
    return public_half(new_node_key())


def settings_of(names: Iterable[str], *, revoked: Iterable[str] = ()) -> FederationSettings:
    """A federation of these sites."""
    gone = set(revoked)
    sites = {
        name: AdmittedSite(public_key=key_of(name), admitted=START, revoked=START if name in gone else None)
        for name in names
    }
    return FederationSettings(name="lungs", address="federation.example:443", sites=sites)


def roster_of(names: Iterable[str], *, revoked: Iterable[str] = ()) -> Roster:
    """The roster of these sites."""
    settings = settings_of(names, revoked=revoked)
    return Roster(lambda: settings)


@dataclass
class FakeNode:
    """One SuperNode and the site behind it."""

    node_id: int
    site: FakeSite
    public_key: bytes
    takes_s: float = 1.0  # from order to answer
    online: bool = True
    alive: bool = True  # whether it answers at all
    last_activated_at: str = "1"
    online_until: float = 60.0
    heartbeat_interval: float = 30.0


@dataclass
class FakeNetwork:
    """Flower's grid over nodes 2, 3, ...; `pushed` lists (seconds, site, message type) of every order sent."""

    sites: list[FakeSite]
    time: float = 0.0
    pushed: list[tuple[float, str, str]] = field(default_factory=list)
    nodes: dict[int, FakeNode] = field(default_factory=dict)
    _out: dict[str, tuple[int, str, float, Message]] = field(default_factory=dict)
    _plans: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterable[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        for number, site in enumerate(self.sites, start=2):
            self.nodes[number] = FakeNode(number, site, as_flower_keeps_it(key_of(site.card.site)))

    # The clock

    def clock(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += max(seconds, 1e-3)
        due = [plan for plan in self._plans if plan[0] <= self.time]
        self._plans = [plan for plan in self._plans if plan[0] > self.time]
        for _, happens in due:
            happens()

    def at(self, seconds: float, happens: Callable[[], None]) -> None:
        self._plans.append((seconds, happens))

    # What happens to nodes

    def node(self, name: str) -> FakeNode:
        return next(node for node in self.nodes.values() if node.site.card.site == name)

    def stops(self, name: str) -> None:
        self.node(name).alive = False

    def answers(self, name: str) -> None:
        self.node(name).alive = True

    def leaves(self, name: str) -> None:
        self.node(name).online = False

    def returns(self, name: str) -> None:
        """The SuperNode starts anew."""
        node = self.node(name)
        node.online = node.alive = True
        node.last_activated_at = str(int(node.last_activated_at) + 1)

    # Flower's grid

    def get_nodes(self) -> list[FakeNode]:
        return [node for node in self.nodes.values() if node.online]

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        node = self.nodes[message.metadata.dst_node_id]
        identity = message.metadata.__dict__["_message_id"] = f"m{next(self._numbers)}"
        self.pushed.append((round(self.time, 1), node.site.card.site, message.metadata.message_type))
        self._out[identity] = (node.node_id, node.last_activated_at, self.time + node.takes_s, message)
        return identity

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [reply for identity in message_ids if (reply := self._pull(identity)) is not None]

    def _pull(self, identity: str) -> Message | None:
        if identity not in self._out:
            return None
        number, activated, due, message = self._out[identity]
        node = self.nodes[number]
        if not node.online:
            del self._out[identity]
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "node unavailable"), reply_to=message)
        if not node.alive or node.last_activated_at != activated or self.time < due:
            return None
        del self._out[identity]
        return node.site.answer(message)
