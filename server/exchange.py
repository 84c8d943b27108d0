"""Orders out and replies in over a real network: our own loop in place of Flower's `send_and_receive`.

Flower's looks every 3 s and sends once. Here an order is sent again when the site's app crashed or its node came back,
a site whose people have not agreed yet is asked again, and a node that gave nothing by the deadline is not waited for
until it shows life. One that is silent for the k-th time, k > 1, is on probation after that: it gets orders and is not
waited for until it has answered 2^(k-1) of them in a row in time. So a node costs at most 1 + log2(rounds) deadlines,
whatever it does.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from flwr.app import Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from multimix.contract.records import REFUSAL
from multimix.errors import Refused
from server.grid import MOST_BESIDE_WEIGHTS, NetworkGrid, Node, Puller, nodes_online
from server.log import log
from server.roster import Roster

# Refusals that a person or a restart at the site may lift before the deadline, in words for the coordinator's log.
WAITING: Final = {
    "job_not_approved": "its people have not approved this job yet (there: multimix-site approve)",
    "site_paused": "its people have paused it (there: multimix-site resume)",
    "site_busy": "its agent is busy with other work",
    "agent_unavailable": "its agent does not run",
}
_LOOK_S, _SLOWEST_LOOK_S = 0.2, 1.0
_ASK_AGAIN_S, _SLOWEST_ASK_S = 5.0, 30.0
_RESEND_S = 1.0
_RESENDS = 5  # of an order whose app crashed; each pause is twice the one before
_MARGIN_S = 60.0


@dataclass(frozen=True)
class Away:
    """A node that nobody waits for: silent, or held back by what only its own people may mend."""

    kind: Literal["silent", "held", "probation"]
    activated: str = ""  # as it was when it fell silent
    to_answer: int = 0  # orders in time, one after another, until it is waited for again


@dataclass
class Errand:
    """One order to one node, until it is answered."""

    order: Message
    waited: bool
    began_s: float
    due_s: float
    out: dict[str, str] = field(default_factory=dict)  # messages under way -> activation of the node when sent
    pushes: int = 0
    crashes: int = 0
    asked_again: int = 0
    held_by: Message | None = None  # the last refusal that may be lifted
    reply: Message | None = None
    answered_s: float | None = None

    @property
    def is_query(self) -> bool:
        """It asks for a card, and trains nothing."""
        return bool(self.order.metadata.message_type == MessageType.QUERY)


@dataclass
class Post:
    """Sends and receives for one run; remembers who fell silent, and what may still come late."""

    grid: NetworkGrid
    roster: Roster
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    watch: Callable[[], None] = lambda: None  # called at every look
    online: dict[int, Node] = field(default_factory=dict)
    members: set[int] = field(default_factory=set)  # nodes of sites that take part; all others are asked for their card
    keys: dict[int, bytes] = field(default_factory=dict)  # of every node that was ever online
    cards: dict[int, Message] = field(default_factory=dict)  # node -> its answer to the question for its card
    away: dict[int, Away] = field(default_factory=dict)
    silences: Counter[int] = field(default_factory=Counter)  # how often a node gave nothing while it was waited for
    errands: dict[int, Errand] = field(default_factory=dict)  # of the exchange under way, or the last one
    ends_s: float | None = None  # when the exchange under way ends at the latest, by `clock`
    _late: dict[str, tuple[Message, str]] = field(default_factory=dict)  # orders, with activation, of earlier exchanges
    _puller: Puller = field(init=False)

    def __post_init__(self) -> None:
        self._puller = Puller(self.grid)

    def exchange(
        self, messages: list[Message], *, deadline_s: float, until: Callable[[float], bool] | None = None
    ) -> dict[int, Message]:
        """Return the replies by node when all who are waited for have answered, at the latest at the deadline.

        Nodes that are not members are asked for their card meanwhile. `until`, given the seconds since the start,
        ends the exchange in place of the replies.
        """
        start, pause = self.clock(), _LOOK_S
        self.ends_s = start + deadline_s
        self.look()
        # Twice what was sent: arrays come back as they went, and late replies to a larger order may be among them.
        sent = max((_bytes_of(message) for message in messages), default=0)
        self._puller.most_bytes = max(self._puller.most_bytes, 2 * sent + MOST_BESIDE_WEIGHTS)
        self.errands = {message.metadata.dst_node_id: self._errand(message, start) for message in messages}
        while True:
            came = self._turn(start + deadline_s, deadline_s)
            left = start + deadline_s - self.clock()
            if left <= 0 or (until(deadline_s - left) if until else self._all_answered()):
                break
            pause = _LOOK_S if came else min(1.3 * pause, _SLOWEST_LOOK_S)
            self.sleep(min(pause, left))
        self._close()
        self.ends_s = None
        return {n: errand.reply for n, errand in self.errands.items() if errand.reply and not errand.is_query}

    def site_of(self, node: int) -> str:
        """Return the name under which a node's key was admitted, else the node's number."""
        try:
            return self.roster.name_of(self.keys.get(node, b""))
        except Refused:
            return str(node)

    def was_asked(self, node: int) -> bool:
        """Whether the last exchange sent the node its order, or would have had it been there."""
        errand = self.errands.get(node)
        return errand is not None and not errand.is_query and (errand.waited or errand.pushes > 0)

    def look(self) -> None:
        """See who is online, and who has shown life since the last look."""
        self.online = nodes_online(self.grid)
        self.keys |= {node: seen.key for node, seen in self.online.items()}
        for node, away in list(self.away.items()):
            if away.kind == "silent" and node in self.online and self.online[node].activated != away.activated:
                self._alive(node)
        for identity, reply in self._puller.replies(list(self._late)).items():
            self._take_late(self._late.pop(identity)[0], reply)

    def _take_late(self, order: Message, reply: Message | None) -> None:
        node, reply = order.metadata.dst_node_id, reply or _unreadable(order)
        if reply.has_error():
            return
        if node in self.away and not waiting_for(reply):
            self._alive(node)
        if node not in self.members and order.metadata.message_type == MessageType.QUERY and not waiting_for(reply):
            self.cards[node] = reply

    def _errand(self, order: Message, now: float) -> Errand:
        """Return the errand of an order; a silent node is asked for a sign of life in its place."""
        node = order.metadata.dst_node_id
        away = self.away.get(node)
        return Errand(_query(node) if away and away.kind == "silent" else order, not away, now, now)

    def _turn(self, end: float, deadline_s: float) -> bool:
        """Send what is due and take what has come; tell whether anything came."""
        now = self.clock()
        for node in self.online:
            if node not in self.errands and node not in self.members:
                self.errands[node] = Errand(_query(node), waited=False, began_s=now, due_s=now)
        for node, errand in self.errands.items():
            if self._is_due(node, errand, now):
                self._push(node, errand, deadline_s)
        came = self._pull(end)
        self.look()
        self.watch()
        return came

    def _is_due(self, node: int, errand: Errand, now: float) -> bool:
        if errand.reply is not None or node not in self.online:
            return False
        if errand.out:  # what a node had taken is lost when it starts anew
            return self.online[node].activated not in errand.out.values()
        return now >= errand.due_s and (errand.waited or not self._is_busy(node, errand))

    def _is_busy(self, node: int, errand: Errand) -> bool:
        """Whether the node still has such an order of an earlier exchange: one at a time for who is not waited for."""
        kind, activated = errand.order.metadata.message_type, self.online[node].activated
        return any(
            order.metadata.dst_node_id == node and order.metadata.message_type == kind and when == activated
            for order, when in self._late.values()
        )

    def _push(self, node: int, errand: Errand, deadline_s: float) -> None:
        """Send the order in a new message; the plan in it stays the same, so the site knows it again."""
        message = Message(
            errand.order.content,
            dst_node_id=node,
            message_type=errand.order.metadata.message_type,
            ttl=2 * deadline_s + _MARGIN_S,  # a late reply is a sign of life; a still older order is worth nothing
        )
        sent = [str(identity) for identity in self.grid.push_messages([message]) if identity]
        errand.out |= dict.fromkeys(sent, self.online[node].activated)
        errand.pushes += 1
        errand.due_s = self.clock() + _RESEND_S

    def _pull(self, end: float) -> bool:
        owners = {i: node for node, errand in self.errands.items() for i in errand.out}
        replies = self._puller.replies(list(owners))
        for identity, reply in replies.items():
            node, errand = owners[identity], self.errands[owners[identity]]
            errand.out.pop(identity)
            if errand.reply is None:
                self._take(node, errand, reply or _unreadable(errand.order), end)
        return bool(replies)

    def _take(self, node: int, errand: Errand, reply: Message, end: float) -> None:
        now, why = self.clock(), waiting_for(reply)
        if reply.has_error():
            self._crashed(node, errand, reply, now)
        elif why:
            self._ask_again(node, errand, reply, now)
        else:
            errand.reply, errand.answered_s = reply, min(now, end)
            if node in self.away:
                self._alive(node, answered=0 if errand.is_query else 1)
            if node not in self.members and errand.is_query:
                self.cards[node] = reply

    def _crashed(self, node: int, errand: Errand, reply: Message, now: float) -> None:
        """Send again: at once to a node that was offline when it is back, with growing pauses where the app crashed."""
        if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            errand.due_s = now + _RESEND_S
            return
        errand.crashes += 1
        errand.due_s = now + _RESEND_S * 2**errand.crashes
        if errand.crashes > _RESENDS:
            errand.reply = reply
            self._fell_silent(node, errand, Away("held"))

    def _ask_again(self, node: int, errand: Errand, reply: Message, now: float) -> None:
        why = waiting_for(reply)
        if node not in self.away and (errand.held_by is None or waiting_for(errand.held_by) != why):
            log.warning("  %s does not take part yet: %s (%s)", self.site_of(node), WAITING[why], why)
        errand.held_by = reply
        errand.due_s = now + min(_ASK_AGAIN_S * 1.5**errand.asked_again, _SLOWEST_ASK_S)
        errand.asked_again += 1
        if node in self.away:
            self.away[node] = Away("held")

    def _all_answered(self) -> bool:
        return all(e.reply is not None or self._was_revoked(n) for n, e in self.errands.items() if e.waited)

    def _was_revoked(self, node: int) -> bool:
        return node not in self.online and self.site_of(node) not in self.roster.admitted()

    def _close(self) -> None:
        """Note who gave nothing, and what may still come."""
        for node, errand in self.errands.items():
            self._late |= {identity: (errand.order, activated) for identity, activated in errand.out.items()}
            if errand.reply is not None:
                continue
            if errand.held_by is not None and not errand.out:
                errand.reply = errand.held_by  # nothing is under way: it has done nothing
            # A node that is offline comes back in another activation than any it had.
            activated = self.online[node].activated if node in self.online else ""
            self._fell_silent(node, errand, Away("held") if errand.held_by else Away("silent", activated))

    def _fell_silent(self, node: int, errand: Errand, away: Away) -> None:
        if errand.waited:
            self.silences[node] += 1
            self.away[node] = away
            log.warning("  %s gave no answer by the deadline and is not waited for again", self.site_of(node))
        elif node in self.away and self.away[node].kind == "probation":
            self.away[node] = away

    def _alive(self, node: int, *, answered: int = 0) -> None:
        """Take note of a sign of life: of how many orders that it answered in time."""
        away, silences = self.away[node], self.silences[node]
        if silences > 1:
            before = away.to_answer if away.kind == "probation" else 2 ** (silences - 1)
            left = before - answered
            if left > 0:
                self.away[node] = Away("probation", to_answer=left)
                if away.kind != "probation":
                    log.info("  %s is back; it was silent before and is not waited for yet", self.site_of(node))
                return
        del self.away[node]
        log.info("  %s is back and waited for from the next round", self.site_of(node))


def waiting_for(reply: Message) -> str:
    """Return the reason of a refusal that may be lifted before the deadline, else an empty text."""
    if reply.has_error() or REFUSAL not in reply.content.config_records:
        return ""
    reason = str(reply.content.config_records[REFUSAL].get("reason"))
    return reason if reason in WAITING else ""


def _bytes_of(order: Message) -> int:
    return sum(len(array.data) for record in order.content.array_records.values() for array in record.values())


def _query(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)


def _unreadable(order: Message) -> Message:
    """Stand in for a reply that cannot be read: an answer that says nothing is malformed."""
    return Message(RecordDict(), reply_to=order)
