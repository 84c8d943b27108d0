import pytest
from fake_sites import CONVENTION, PLAN_KEY, FakeGrid, FakeSite, card, silent, tiny_run, weights
from flwr.app import MessageType

from multimix.contract.records import read_request
from multimix.contract.signing import verified
from server.federation import Federation
from server.local_only import train_alone
from server.rounds import Orders


class _Remembers(FakeSite):
    """A site that keeps the weights and the job that each order brought."""

    def __init__(self, *arguments, **fields):
        super().__init__(*arguments, **fields)
        self.received, self.jobs = [], set()

    def answer(self, message):
        if message.metadata.message_type != MessageType.QUERY:
            signed, values = read_request(message.content)
            self.received.append(float(values["encoder.a"][0, 0]))
            self.jobs.add(verified(signed, PLAN_KEY.public_key()).job_id)
        return super().answer(message)


def _train_alone(*sites, convention=CONVENTION, rounds=3):
    nodes = {site.card.site: node for node, site in enumerate(sites, start=2)}
    cards = {site.card.site: site.card for site in sites}
    federation = Federation(FakeGrid(sites), nodes=nodes, cards=cards)
    orders = Orders(job_id="job", config=tiny_run(rounds=rounds), key=PLAN_KEY, mask_convention=convention)
    return train_alone(federation, orders, weights(1.0), sorted(nodes))


def test_every_site_continues_from_its_own_weights():
    a, b = _Remembers(card("a")), _Remembers(card("b"))
    _train_alone(a, b)
    for site in (a, b):
        ahead = [1.0, 1.0 + site.step(1), 1.0 + site.step(1) + site.step(2)]
        assert site.received == pytest.approx([*ahead, ahead[-1] + site.step(3)])  # three rounds, then scored
    assert a.step(1) != b.step(1)


def test_a_site_is_scored_with_its_own_model_on_its_test_patients():
    figures = _train_alone(FakeSite(card("a"), dice=0.6), FakeSite(card("b"), dice=0.7))
    assert {site: metrics["dice"] for site, metrics in figures.items()} == pytest.approx({"a": 0.6, "b": 0.7})


def test_a_site_that_fails_to_answer_is_left_out_of_the_comparison():
    figures = _train_alone(FakeSite(card("a")), FakeSite(card("b"), misbehaves={2: silent}))
    assert list(figures) == ["a"]


def test_local_training_is_another_job_so_that_no_plan_is_a_replay():
    first, second = _Remembers(card("a")), _Remembers(card("a"))
    _train_alone(first)
    _train_alone(second)
    assert len(first.jobs) == 1
    assert first.jobs.isdisjoint({"job"} | second.jobs)
