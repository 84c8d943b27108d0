"""What one admitted site can do to a run of others: be left out, and nothing more."""

import pytest
from fake_network import FakeNetwork, roster_of, settings_of
from fake_sites import PLAN_KEY, FakeSite, card, silent, tiny_run
from private_sites import PRIVATE, PrivateSite, private_sites
from safetensors.numpy import load_file

from multimix.contract.messages import ClassCounts
from multimix.errors import InputError
from multimix.locks import held
from server.exchange import Post
from server.grid import ReplyTooLargeError, pull_bounded
from server.job import Job, run_job
from server.production import Production
from server.roster import Roster

DEADLINE_S = 100.0
ACCEPTED = ("accepted", None)


@pytest.fixture(autouse=True)
def _clock_by_hand(monkeypatch):
    monkeypatch.setattr("server.job.Post", lambda grid, roster: Post(grid, roster, clock=grid.clock, sleep=grid.sleep))


@pytest.fixture
def run(tmp_path):
    def run(network, *, roster=None, out="run", after_round=lambda _state: None, **config):
        fields = {"rounds": 3, "deadline_s": DEADLINE_S, "dp": "none"} | config
        production = Production(roster or roster_of("abcd"), tmp_path / "heads.jsonl")
        return run_job(
            network, Job(tiny_run(**fields), tmp_path / out, PLAN_KEY, {}, production), after_round=after_round
        )

    return run


def network_of(names="abc", **misbehaving):
    return FakeNetwork([FakeSite(card(name), misbehaves=misbehaving.get(name, {})) for name in names])


def states(results, site):
    return [(each.sites[site].state, each.sites[site].reason) for each in results.rounds if site in each.sites]


def stop_after_the_first(state):
    if state.round == 1:
        raise KeyboardInterrupt


def model(tmp_path, out):
    return {name: value.tobytes() for name, value in load_file(tmp_path / out / "model.safetensors").items()}


@pytest.mark.parametrize("sender", [424242, 2], ids=["nobody", "another site"])
def test_a_reply_that_names_another_sender_counts_as_that_of_the_site_that_was_asked(run, tmp_path, sender):
    def forged(site, message):
        reply = site.train(message)
        reply.metadata.__dict__["_src_node_id"] = sender
        return reply

    run(network_of(), out="honest")
    run(network_of(c=dict.fromkeys(range(1, 4), forged)), out="forged")
    assert model(tmp_path, "forged") == model(tmp_path, "honest")


def test_a_site_that_shows_other_images_at_a_resume_is_left_out_and_the_others_go_on(run):
    with pytest.raises(KeyboardInterrupt):
        run(network_of(), after_round=stop_after_the_first)
    again = FakeNetwork([FakeSite(card("a")), FakeSite(card("b")), FakeSite(card("c", data_fingerprint="others"))])
    results = run(again, resume=True)
    assert states(results, "a") == [ACCEPTED] * 3
    assert states(results, "c")[1:] == [("absent", "absent")] * 2


def test_a_site_too_many_for_site_level_noise_at_a_resume_is_left_out_and_the_others_go_on(run):
    first = network_of("abcd")
    first.leaves("d")
    private = {"dp": "site", "dp_accept": True}
    with pytest.raises(KeyboardInterrupt):
        run(first, after_round=stop_after_the_first, **private)
    results = run(network_of("abcd"), resume=True, **private)
    assert results.status == "finished"
    assert states(results, "d") == []


def with_one_patient(name):
    counts = ClassCounts(normal=0, pneumonia=0)
    few = {"images": 1, "patients": 1, "training_patients": 1, "labelled_patients": counts, "masked_patients": {}}
    return PrivateSite(card(name, **few))


def test_a_card_that_no_private_plan_can_be_made_for_keeps_out_its_own_site_alone(run):
    results = run(FakeNetwork([*private_sites()[:2], with_one_patient("c")]), **PRIVATE)
    assert results.status == "finished"
    assert states(results, "a")[0] == ACCEPTED
    assert states(results, "c") == []


def test_where_no_private_plan_can_be_made_for_anybody_the_configuration_is_to_blame(run):
    with pytest.raises(InputError) as caught:
        run(FakeNetwork([with_one_patient(name) for name in "abc"]), **PRIVATE)
    assert caught.value.reason == "dp_parameters"


def test_a_site_that_answers_for_its_card_and_never_an_order_costs_a_handful_of_deadlines_in_a_long_run(run):
    network = network_of(c=dict.fromkeys(range(1, 33), silent))
    network.node("a").takes_s = 2.0
    run(network, rounds=32)
    assert network.time < 6 * DEADLINE_S + 32 * 4  # 1 + log2(32) deadlines


def test_a_site_that_was_silent_twice_is_waited_for_again_after_it_has_answered_two_orders_in_time(run):
    network = network_of()
    network.node("a").takes_s = 3.0
    happens = {1: network.stops, 3: network.returns, 6: network.stops, 8: network.returns}
    for number, what in happens.items():
        network.node("a").site.misbehaves[number] = lambda site, message, what=what: what("c") or site.train(message)
    results = run(network, rounds=14)
    assert states(results, "c")[-4:] == [ACCEPTED] * 4
    assert network.time < 3 * DEADLINE_S


def test_a_site_that_is_revoked_between_its_answer_and_the_end_of_the_round_is_not_averaged(run):
    known = [settings_of("abc")]
    network = network_of()
    network.at(0.5, lambda: setattr(network.node("a"), "takes_s", 30.0))

    def revoke():
        known[0] = settings_of("abc", revoked="c")
        network.leaves("c")

    network.at(15.0, revoke)
    results = run(network, rounds=1, roster=Roster(lambda: known[0]))
    assert states(results, "c") == [("absent", "site_revoked")]
    assert "c" not in results.rounds[0].module_shares["encoder"]


class Sends:
    """Flower's grid and its client at the SuperLink: a reply of so many objects of a megabyte."""

    def __init__(self, objects):
        self.objects, self.pulled = objects, 0

    @property
    def _runtime_client(self):
        return self

    def PullObject(self, _request):  # noqa: N802
        self.pulled += 1
        return type("Response", (), {"object_content": bytes(1 << 20)})

    def pull_messages(self, _identities):
        return [self._runtime_client.PullObject(None) for _ in range(self.objects)]


def test_a_reply_is_dropped_as_soon_as_it_is_larger_than_any_honest_one():
    grid = Sends(objects=1000)
    with pytest.raises(ReplyTooLargeError):
        pull_bounded(grid, "m", 3 << 20)
    assert grid.pulled == 4


def test_a_reply_of_the_largest_honest_size_arrives():
    assert len(pull_bounded(Sends(objects=3), "m", 3 << 20)) == 3


def test_two_processes_do_not_run_in_one_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr("server.job._STOPS_S", 0.3)
    busy = InputError("busy", "")
    with held(tmp_path / ".run.lock", wait_s=0, busy=busy), pytest.raises(InputError) as caught:
        run(network_of())
    assert caught.value.reason == "run_in_use"
