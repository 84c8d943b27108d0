import itertools
import logging

import pytest
from fake_sites import FakeGrid, FakeSite, card, garbled, node_error, refuses, silent
from flwr.app import ConfigRecord, Message, RecordDict

from multimix.errors import Refused
from server.federation import Federation, connected_nodes, content, describe


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("server.federation._SETTLE_S", 0.0)
    monkeypatch.setattr("server.federation._POLL_S", 0.0)


class _Joining:
    """A grid whose nodes appear from look to look; the last look stays."""

    def __init__(self, *looks):
        self._looks = itertools.chain(looks, itertools.repeat(looks[-1]))

    def get_node_ids(self):
        return next(self._looks)


class _Odd(FakeSite):
    """A site that answers the question for its card in a way of its own."""

    odd = staticmethod(silent)

    def describe(self, message):
        return self.odd(self, message)


def _odd_site(odd, name="odd"):
    site = _Odd(card(name))
    site.odd = odd
    return site


def _describe(*sites):
    return describe(FakeGrid(sites), at_least=1, deadline_s=5.0)


def test_every_node_with_a_card_takes_part_under_its_name():
    federation = _describe(FakeSite(card("b")), FakeSite(card("a")))
    assert federation.nodes == {"b": 2, "a": 3}
    assert federation.cards["a"] == card("a")
    assert federation.declined == {}


def test_held_out_sites_are_known_but_do_not_train():
    federation = _describe(FakeSite(card("b")), FakeSite(card("c", role="held-out")), FakeSite(card("a")))
    assert federation.training_sites() == ["a", "b"]
    assert set(federation.cards) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (silent, "absent"),
        (node_error, "site_error"),
        (refuses("site_not_configured"), "site_not_configured"),
        (garbled, "reply_malformed"),
        (lambda site, message: Message(RecordDict(), reply_to=message), "reply_malformed"),
    ],
)
def test_a_node_without_a_usable_card_is_noted_with_its_reason(odd, reason):
    federation = _describe(_odd_site(odd), FakeSite(card("a")))
    assert federation.declined == {"2": reason}
    assert list(federation.cards) == ["a"]


def test_two_nodes_under_one_name_are_both_declined():
    federation = _describe(FakeSite(card("twin")), FakeSite(card("a")), FakeSite(card("twin")))
    assert federation.declined == {"2": "site_name_taken", "4": "site_name_taken"}
    assert federation.nodes == {"a": 3}


def test_a_site_of_another_protocol_is_declined():
    federation = _describe(FakeSite(card("new", protocol=2)), FakeSite(card("a")))
    assert federation.declined == {"2": "protocol_unknown"}


def test_the_log_of_a_declined_node_holds_the_reason_code_and_no_text_of_the_site(caplog):
    def tells(_site, message):
        record = ConfigRecord({"reason": "no_data", "detail": "patient Smith\nis missing"})
        return Message(RecordDict({"refusal": record}), reply_to=message)

    logging.getLogger("multimix.server").propagate = True
    with caplog.at_level(logging.WARNING, "multimix.server"):
        _describe(_odd_site(tells), FakeSite(card("a")))
    assert "no_data" in caplog.text
    assert "Smith" not in caplog.text


def test_a_site_whose_node_left_is_not_present_and_neither_is_a_stranger():
    grid = FakeGrid([FakeSite(card("a")), FakeSite(card("b"))])
    federation = describe(grid, at_least=1, deadline_s=5.0)
    grid.away.add(2)
    assert federation.present(["a", "b", "never seen"]) == ["b"]


def test_the_reply_of_a_site_is_that_of_its_node():
    federation = Federation(FakeGrid([]), nodes={"a": 2})
    assert federation.reply_of("a", {2: "reply"}) == "reply"
    assert federation.reply_of("a", {3: "reply"}) is None
    assert federation.reply_of("never seen", {2: "reply"}) is None


def test_waiting_ends_when_nobody_else_is_joining():
    assert connected_nodes(_Joining([], [5], [5, 3], [5, 3]), at_least=1, deadline_s=60.0) == [3, 5]


def test_waiting_goes_on_until_enough_nodes_are_there():
    assert connected_nodes(_Joining([2], [2], [2], [2, 3]), at_least=2, deadline_s=60.0) == [2, 3]


def test_waiting_ends_at_the_deadline_with_those_who_came():
    seconds = itertools.count(step=4.0)
    nodes = connected_nodes(_Joining([2]), at_least=5, deadline_s=10.0, clock=lambda: next(seconds))
    assert nodes == [2]
    assert next(seconds) == 16.0  # begun at 0, looked at 4, 8 and 12


def test_an_error_reply_says_no_more_than_its_code():
    grid = FakeGrid([FakeSite(card("a"))])
    order = Message(RecordDict(), dst_node_id=2, message_type="query")
    del grid
    with pytest.raises(Refused, match=r"^site_error: code 2$"):
        content(node_error(None, order))
