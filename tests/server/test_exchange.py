"""Replies that stall or cannot be read, sites under the wrong name, keys that were revoked: none costs another site."""

import threading
import time

import httpx
import pytest
from fake_network import FakeNetwork, key_of, roster_of
from fake_sites import FakeSite, card, refuses
from flwr.app import Message, RecordDict

from multimix.contract.node_key import as_flower_keeps_it
from multimix.errors import Refused
from server.exchange import Post
from server.federation import Federation, gather
from server.grid import Puller


def _network(*sites):
    return FakeNetwork([FakeSite(card(name)) for name in sites])


def _post(network, roster=None):
    roster = roster or roster_of(site.card.site for site in network.sites)
    return Post(network, roster, clock=network.clock, sleep=network.sleep)


def _gathered(network, roster=None, **fields):
    names = sorted(site.card.site for site in network.sites)
    settings = {"expected": names, "at_least": 1, "join_s": 10.0, "deadline_s": 60.0}
    return gather(_post(network, roster), network, **settings | fields)


def _queries(network):
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in network.nodes]


class _Stalling:
    """A grid where the reply to one message never finishes its upload, and another cannot be read."""

    def __init__(self):
        self.released = threading.Event()

    def pull_messages(self, message_ids):
        (identity,) = message_ids
        if identity == "stalls":
            self.released.wait(20)
        if identity == "garbage":
            raise RuntimeError("the name of a patient")
        if identity == "lost":
            raise httpx.ConnectError("nobody there")
        return [f"reply to {identity}"]


def test_a_reply_whose_upload_stalls_holds_up_no_other():
    grid = _Stalling()
    puller, began = Puller(grid), time.monotonic()
    assert puller.replies(["stalls", "good"]) == {"good": "reply to good"}
    assert time.monotonic() - began < 5
    grid.released.set()
    assert puller.replies(["stalls"]) == {"stalls": "reply to stalls"}


def test_a_reply_that_cannot_be_read_is_told_from_none_and_its_text_stays_out_of_the_log(caplog):
    assert Puller(_Stalling()).replies(["garbage", "good"]) == {"garbage": None, "good": "reply to good"}
    assert "patient" not in caplog.text


def test_a_superlink_that_is_gone_is_no_reply():
    with pytest.raises(httpx.ConnectError):
        Puller(_Stalling()).replies(["lost"])


def test_every_site_is_known_by_the_key_that_was_admitted_under_its_name():
    federation = _gathered(_network("a", "b"))
    assert federation.nodes == {"a": 2, "b": 3}
    assert federation.declined == {}


def test_a_card_under_another_sites_name_is_declined():
    network = _network("a", "b")
    network.node("b").public_key = as_flower_keeps_it(key_of("c"))
    federation = _gathered(network, roster_of("abc"), expected=("a", "c"))
    assert federation.declined == {"3": "site_mismatch"}
    assert list(federation.nodes) == ["a"]


@pytest.mark.parametrize(
    ("roster", "reason"), [(roster_of("a"), "site_unknown"), (roster_of("ab", revoked="b"), "site_revoked")]
)
def test_a_node_without_an_admitted_key_is_declined(roster, reason):
    assert _gathered(_network("a", "b"), roster, expected=["a"], at_least=2).declined in ({"3": reason}, {})
    with pytest.raises(Refused, match=reason):
        roster.name_of(as_flower_keeps_it(key_of("b")))


def test_gathering_ends_as_soon_as_every_expected_site_has_shown_its_card():
    network = _network("a", "b")
    _gathered(network)
    assert network.time < 3


def test_gathering_waits_for_a_quorum_until_the_deadline():
    network = _network("a", "b")
    network.leaves("b")
    federation = _gathered(network, at_least=2)
    assert 60 <= network.time < 62
    assert list(federation.nodes) == ["a"]


def test_a_site_whose_agent_does_not_run_yet_is_asked_again_and_taken_in():
    network, up = _network("a", "b"), []
    network.at(12.0, lambda: up.append(True))
    describe = network.node("b").site.describe
    network.node("b").site.describe = lambda message: (
        describe(message) if up else refuses("agent_unavailable")(None, message)
    )
    federation = _gathered(network, at_least=2)
    assert sorted(federation.nodes) == ["a", "b"]
    assert 12 < network.time < 30


def test_a_site_that_was_revoked_during_the_run_is_neither_asked_nor_waited_for():
    network = _network("a", "b")
    federation = _gathered(network)
    federation.post.roster = roster_of("ab", revoked="b")
    assert federation.present(["a", "b"]) == ["a"]
    assert federation.why_absent("b") == "site_revoked"


def test_a_site_revoked_in_the_middle_of_a_round_ends_the_wait_for_it():
    network = _network("a", "b")
    post = _gathered(network).post
    network.node("b").takes_s = 1000.0

    def revoke():
        post.roster = roster_of("ab", revoked="b")
        network.leaves("b")

    network.at(network.time + 5, revoke)
    network.node("a").site.answer = lambda message: Message(RecordDict(), reply_to=message)
    began = network.time
    assert list(post.exchange(_queries(network), deadline_s=60.0)) == [2]
    assert network.time - began < 10


def test_a_second_exchange_takes_no_late_reply_for_its_own():
    network = _network("a")
    post = _gathered(network).post
    sent = []

    def answers(message):
        sent.append(message)
        return Message(RecordDict(), reply_to=message)

    network.node("a").site.answer = answers
    network.node("a").takes_s = 12.0
    assert post.exchange(_queries(network), deadline_s=10.0) == {}
    network.node("a").takes_s = 1.0
    assert post.exchange(_queries(network), deadline_s=10.0) == {}  # silent: asked for a sign of life only
    network.sleep(5.0)
    post.look()
    assert 2 in post.exchange(_queries(network), deadline_s=10.0)


def test_a_simulations_grid_is_asked_by_send_and_receive():
    class Grid:
        def send_and_receive(self, messages, *, timeout):
            assert timeout == 5.0
            return [Message(RecordDict(), reply_to=message) for message in messages]

    orders = _queries(_network("a"))
    assert list(Federation(Grid()).exchange(orders, deadline_s=5.0)) == [2]
