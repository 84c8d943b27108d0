"""The sites of one job as the server sees them: who is there, asking them, sorting what they answer.

Talks to a Flower `Grid`: SuperLink in production, a plain loop in one process in `sim`. Sites are known by the card
that their node showed at the start, never by what a later reply calls itself.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from multimix.contract.messages import PROTOCOL, SiteCard
from multimix.contract.records import read_reply
from multimix.errors import Refused
from server.log import log

_POLL_S = 0.5
_SETTLE_S = 1.0  # nodes still joining: look again before the first round


@dataclass
class Federation:
    """Nodes and cards of the sites that described themselves."""

    grid: Grid
    nodes: dict[str, int] = field(default_factory=dict)  # site -> node
    cards: dict[str, SiteCard] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)  # node -> reason, of those that did not

    def training_sites(self) -> list[str]:
        """Return the sites that train, by name."""
        return sorted(site for site, card in self.cards.items() if card.role == "train")

    def present(self, sites: Iterable[str]) -> list[str]:
        """Return those of the sites whose node is connected now."""
        connected = set(self.grid.get_node_ids())
        return [site for site in sites if self.nodes.get(site) in connected]

    def exchange(self, messages: list[Message], *, deadline_s: float) -> dict[int, Message]:
        """Send messages and return the replies by node, at the latest at the deadline."""
        replies = self.grid.send_and_receive(messages, timeout=deadline_s)
        return {reply.metadata.src_node_id: reply for reply in replies}

    def reply_of(self, site: str, replies: dict[int, Message]) -> Message | None:
        """Return a site's reply; None where it gave none, or is not there."""
        return replies.get(self.nodes[site]) if site in self.nodes else None


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


def _decline(federation: Federation, node: int, reason: str) -> None:
    federation.declined[str(node)] = reason
    log.warning("node %d does not take part: %s", node, reason)


def content(reply: Message | None) -> RecordDict:
    """Return what a reply carries; Refused `absent` or `site_error`."""
    if reply is None:
        raise Refused("absent")
    if reply.has_error():
        raise Refused("site_error", f"code {reply.error.code}")
    return reply.content


def _card(reply: Message | None) -> SiteCard:
    card = read_reply(content(reply), SiteCard)
    if card.protocol != PROTOCOL:
        raise Refused("protocol_unknown")
    return card
