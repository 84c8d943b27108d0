"""The sites of one job as the server sees them: who is there, asking them, sorting what they answer.

Talks to a Flower `Grid`: SuperLink in production, a plain loop in one process in `sim`. Sites are known by the card
that their node showed, never by what a later reply calls itself; in production the card must bear the name under
which the node's key was admitted.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from multimix.contract.messages import PROTOCOL, SiteCard
from multimix.contract.records import read_reply
from multimix.errors import Refused
from server.exchange import Post, waiting_for
from server.log import log

_POLL_S = 0.5
_SETTLE_S = 1.0  # nodes still joining: look again before the first round
JOIN_S = 30.0  # how long a new run waits for admitted sites beyond its quorum; they may join in any round


@dataclass
class Federation:
    """Nodes and cards of the sites that described themselves."""

    grid: Grid
    nodes: dict[str, int] = field(default_factory=dict)  # site -> node
    cards: dict[str, SiteCard] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)  # node -> reason, of those that did not
    post: Post | None = None  # over a real network; none where the grid is a simulation's

    def training_sites(self) -> list[str]:
        """Return the sites that train, by name."""
        return sorted(site for site, card in self.cards.items() if card.role == "train")

    def present(self, sites: Iterable[str]) -> list[str]:
        """Return those of the sites that can be asked: whose node is connected now, or may yet be by the deadline."""
        if self.post is not None:
            admitted = self.post.roster.admitted()
            return [site for site in sites if site in self.nodes and site in admitted]
        connected = set(self.grid.get_node_ids())
        return [site for site in sites if self.nodes.get(site) in connected]

    def exchange(self, messages: list[Message], *, deadline_s: float) -> dict[int, Message]:
        """Send messages and return the replies by node, at the latest at the deadline."""
        return dict(self._replies(messages, deadline_s))

    def answers(
        self, sites: Iterable[str], messages: list[Message], *, deadline_s: float
    ) -> Iterator[tuple[str, Message | None]]:
        """Send messages and yield each site's answer in the order of names, None where there is none by the deadline.

        An answer is yielded as soon as it and those before it are there, so that none has to be kept until the last.
        """
        left = sorted(sites)
        waiting: dict[int, Message] = {}
        for node, reply in self._replies(messages, deadline_s):
            waiting[node] = reply
            while left and self.nodes.get(left[0]) in waiting:
                site = left.pop(0)
                yield site, self.reply_of(site, waiting)
                waiting.pop(self.nodes[site], None)
        for site in left:
            yield site, self.reply_of(site, waiting)

    def _replies(self, messages: list[Message], deadline_s: float) -> Iterator[tuple[int, Message]]:
        if self.post is not None:
            yield from self.post.exchange(messages, deadline_s=deadline_s).items()
            return
        for reply in self.grid.send_and_receive(messages, timeout=deadline_s):
            yield reply.metadata.src_node_id, reply

    def reply_of(self, site: str, replies: dict[int, Message]) -> Message | None:
        """Return a site's reply; None where it gave none, is not there, or was revoked since."""
        if site not in self.nodes or (self.post is not None and not self.present([site])):
            return None
        return replies.get(self.nodes[site])

    def why_absent(self, site: str) -> str:
        """Return why a site gave no answer in the last exchange.

        `absent`; `silent`: it was so before, and not asked; `site_revoked`.
        """
        if self.post is None or site not in self.nodes:
            return "absent"
        if site not in self.post.roster.admitted():
            return "site_revoked"
        return "absent" if self.post.was_asked(self.nodes[site]) else "silent"

    def take_in(self) -> list[str]:
        """Admit the cards that nodes showed since the last time; return the names of these sites."""
        taken = []
        while self.post is not None and self.post.cards:
            node, reply = self.post.cards.popitem()
            try:
                card = _card(reply, of=self.post.roster.name_of(self.post.keys[node]))
            except Refused as refused:
                _decline(self, node, refused.reason)
                continue
            self.nodes[card.site], self.cards[card.site] = node, card
            self.post.members = set(self.nodes.values())
            taken.append(card.site)
        return sorted(taken)

    def leave_out(self, site: str, reason: str) -> None:
        """Forget a site whose card was taken in but that this job has no place for."""
        _decline(self, self.nodes.pop(site), reason)
        del self.cards[site]
        if self.post is not None:
            self.post.members = set(self.nodes.values())


def connected_nodes(
    grid: Grid, *, at_least: int, deadline_s: float, clock: Callable[[], float] = time.monotonic
) -> list[int]:
    """Wait until enough nodes are connected and no more are joining, or until the deadline."""
    start, known = clock(), -1
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= max(1, at_least) and len(nodes) == known:
            return nodes
        if clock() - start > deadline_s:
            return nodes
        known = len(nodes)
        time.sleep(_SETTLE_S if nodes else _POLL_S)


def describe(grid: Grid, *, at_least: int, deadline_s: float) -> Federation:
    """Ask every connected node for its site card.

    A node without a usable card is noted with its reason; two nodes under one name are both declined.
    """
    federation = Federation(grid)
    nodes = connected_nodes(grid, at_least=at_least, deadline_s=deadline_s)
    orders = [Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes]
    replies = federation.exchange(orders, deadline_s=deadline_s)
    cards: dict[int, SiteCard] = {}
    for node in nodes:
        try:
            cards[node] = _card(replies.get(node))
        except Refused as refused:
            _decline(federation, node, refused.reason)
    names = Counter(card.site for card in cards.values())
    for node, card in cards.items():
        if names[card.site] > 1:
            _decline(federation, node, "site_name_taken")
        else:
            federation.nodes[card.site], federation.cards[card.site] = node, card
    return federation


def gather(
    post: Post, grid: Grid, *, expected: Iterable[str], at_least: int, join_s: float, deadline_s: float
) -> Federation:
    """Ask every node of a real network for its card, until all expected sites have answered, or the deadline.

    After `join_s` it goes on with `at_least` of them.
    """
    federation, missing = Federation(grid, post=post), set(expected)

    def is_enough(elapsed_s: float) -> bool:
        answered = {post.site_of(node) for node in post.cards}
        return not missing - answered or (elapsed_s >= join_s and len(answered) >= at_least)

    post.exchange([], deadline_s=deadline_s, until=is_enough)
    for node, errand in post.errands.items():
        if node not in post.cards:
            _decline(federation, node, waiting_for(errand.held_by) if errand.held_by else "absent")
    federation.take_in()
    return federation


def _decline(federation: Federation, node: int, reason: str) -> None:
    if federation.declined.get(str(node)) == reason:
        return  # said before
    federation.declined[str(node)] = reason
    log.warning("node %d does not take part: %s", node, reason)


def content(reply: Message | None, *, absent: str = "absent") -> RecordDict:
    """Return what a reply carries; Refused with the reason `absent` stands for, or `site_error`."""
    if reply is None:
        raise Refused(absent)
    if reply.has_error():
        raise Refused("site_error", f"code {reply.error.code}")
    return reply.content


def _card(reply: Message | None, *, of: str | None = None) -> SiteCard:
    card = read_reply(content(reply), SiteCard)
    if card.protocol != PROTOCOL:
        raise Refused("protocol_unknown")
    if of not in (None, card.site):
        raise Refused("site_mismatch")
    return card
