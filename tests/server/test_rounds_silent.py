"""A dead or silent site costs one deadline in a whole run, and is taken in again after it showed life."""

import logging

import pytest
from fake_network import FakeNetwork, roster_of
from fake_sites import PLAN_KEY, FakeSite, card, node_error, refuses, silent, tiny_run
from private_sites import PRIVATE, private_sites
from safetensors.numpy import load_file

from server.exchange import Post
from server.job import Job, run_job
from server.log import log
from server.production import Production

DEADLINE_S = 100.0


@pytest.fixture(autouse=True)
def _clock_by_hand(monkeypatch):
    """Let the job's Post go by the clock of its grid."""

    def post(grid, roster):
        return Post(grid, roster, clock=grid.clock, sleep=grid.sleep)

    monkeypatch.setattr("server.job.Post", post)


@pytest.fixture
def run(tmp_path):
    """Run a job over a fake network, in a folder below tmp_path."""

    def run(network, *, admitted="abc", out="run", after_round=lambda _state: None, **config):
        fields = {"rounds": 5, "deadline_s": DEADLINE_S, "dp": "none"} | config
        production = Production(roster_of(admitted), tmp_path / "heads.jsonl")
        job = Job(tiny_run(**fields), tmp_path / "runs" / out, PLAN_KEY, {}, production)
        return run_job(network, job, after_round=after_round)

    return run


def _network(names="abc", **misbehaving):
    return FakeNetwork([FakeSite(card(name), misbehaves=misbehaving.get(name, {})) for name in names])


def _states(results, site):
    return [(r.sites[site].state, r.sites[site].reason) for r in results.rounds if site in r.sites]


ACCEPTED = ("accepted", None)


def _when(network, number, happens):
    """Do something as the site a is asked for a round."""

    def answer(site, message):
        happens()
        return site.train(message)

    network.node("a").site.misbehaves[number] = answer


def test_a_dead_site_costs_one_deadline_in_a_whole_run(run):
    network = _network()
    _when(network, 1, lambda: network.stops("c"))
    network.node("c").takes_s = 2.0
    results = run(network, rounds=10)
    assert _states(results, "c") == [("absent", "absent")] + [("absent", "silent")] * 9
    assert _states(results, "a") == [ACCEPTED] * 10
    assert DEADLINE_S < network.time < DEADLINE_S + 12 * 3


def test_a_site_that_went_offline_is_not_waited_for_twice(run):
    network = _network()
    _when(network, 2, lambda: network.leaves("c"))
    network.node("c").takes_s = 2.0
    results = run(network)
    assert _states(results, "c") == [ACCEPTED, ("absent", "absent"), *[("absent", "silent")] * 3]
    assert DEADLINE_S < network.time < DEADLINE_S + 20


def test_a_silent_site_is_asked_for_a_sign_of_life_and_trains_nothing_that_nobody_waits_for(run):
    network = _network()
    _when(network, 1, lambda: network.stops("c"))
    network.node("c").takes_s = 2.0
    run(network)
    orders = [kind for _, site, kind in network.pushed if site == "c"]
    assert orders == ["query", "train", "query"]  # its card, round 1, one question that it never answered


def test_a_site_that_comes_back_trains_from_the_next_round(run):
    network = _network()
    _when(network, 1, lambda: network.stops("c"))
    _when(network, 3, lambda: network.returns("c"))
    network.node("c").takes_s = 2.0
    results = run(network)
    assert _states(results, "c") == [("absent", "absent"), *[("absent", "silent")] * 2, ACCEPTED, ACCEPTED]


def test_a_late_reply_is_a_sign_of_life(run):
    network = _network()
    network.at(0.5, lambda: setattr(network.node("c"), "takes_s", DEADLINE_S + 1))  # after its card, before round 1
    network.at(50.0, lambda: setattr(network.node("c"), "takes_s", 0.5))
    results = run(network)
    assert _states(results, "c")[0] == ("absent", "absent")
    assert _states(results, "c")[-1] == ACCEPTED


def test_a_node_that_starts_anew_before_the_deadline_gets_its_order_again_and_the_weights_are_the_same(run, tmp_path):
    run(_network(), out="whole")
    network = _network()
    network.node("c").takes_s = 5.0
    _when(network, 2, lambda: (network.leaves("c"), network.at(network.time + 40, lambda: network.returns("c"))))
    results = run(network)
    assert _states(results, "c") == [ACCEPTED] * 5
    model = "model.safetensors"
    one, other = (load_file(tmp_path / "runs" / name / model) for name in ("run", "whole"))
    assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in other.items()}


def test_an_app_that_crashed_is_given_the_same_order_again(run):
    network = _network()
    crashes = iter([node_error, node_error])

    def crashes_twice(site, message):
        return next(crashes, type(site).train)(site, message)

    network.node("b").site.misbehaves[1] = crashes_twice
    results = run(network)
    assert _states(results, "b") == [ACCEPTED] * 5
    assert network.time < DEADLINE_S


def test_an_app_that_crashes_again_and_again_is_absent_and_held_back(run):
    network = _network(b=dict.fromkeys(range(1, 6), node_error))
    results = run(network)
    assert _states(results, "b")[0] == ("absent", "site_error")
    assert network.time < DEADLINE_S
    assert sum(site == "b" for _, site, _ in network.pushed) < 15


class _Lines(logging.Handler):
    """What the server's log says, line by line."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_a_site_whose_people_approve_before_the_deadline_trains_in_that_round(run):
    network, approved = _network(), []
    network.at(30.0, lambda: approved.append(True))

    def approval(site, message):
        return site.train(message) if approved else refuses("job_not_approved")(site, message)

    network.node("b").site.misbehaves[1] = approval
    said = _Lines()
    log.addHandler(said)
    try:
        results = run(network)
    finally:
        log.removeHandler(said)
    assert _states(results, "b") == [ACCEPTED] * 5
    assert 30.0 < network.time < 80.0
    assert sum("have not approved this job yet" in line for line in said.lines) == 1  # said once, in words


def test_a_site_that_stays_paused_costs_one_deadline_and_is_taken_in_when_it_resumes(run):
    network, resumed = _network(), []
    network.at(DEADLINE_S + 6, lambda: resumed.append(True))

    def paused(site, message):
        return site.train(message) if resumed else refuses("site_paused")(site, message)

    for number in range(1, 11):
        network.node("b").site.misbehaves[number] = paused
    network.node("a").takes_s = 3.0
    results = run(network, rounds=10)
    states = _states(results, "b")
    assert states[0] == ("refused", "site_paused")
    assert states[-1] == ACCEPTED
    assert network.time < DEADLINE_S + 50


def test_a_site_that_connects_after_the_start_trains_from_the_next_round(run):
    network = _network()
    network.leaves("c")
    _when(network, 2, lambda: network.returns("c"))
    network.node("c").takes_s = 0.5
    results = run(network)
    assert [sorted(record.sites) for record in results.rounds] == [["a", "b"]] * 3 + [["a", "b", "c"]] * 2
    assert _states(results, "c") == [ACCEPTED] * 2


def test_a_private_run_fixes_the_plan_of_a_newcomer_when_it_joins(run):
    network = FakeNetwork(private_sites())
    network.leaves("c")
    _when(network, 1, lambda: network.returns("c"))
    network.node("c").takes_s = 0.5
    results = run(network, **PRIVATE)
    assert _states(results, "c") == [ACCEPTED]
    assert [results.privacy_details.patients[site].rounds for site in "abc"] == [3, 3, 1]


def test_a_run_with_noise_for_whole_sites_takes_no_further_site_in(run):
    network = _network("abcd")
    network.leaves("d")
    _when(network, 1, lambda: network.returns("d"))
    results = run(network, admitted="abcd", dp="site", dp_accept=True)
    assert results.status == "finished"
    assert "d" not in results.sites


def test_a_site_that_comes_back_with_other_images_stays_out(run):
    network = _network()
    with pytest.raises(KeyboardInterrupt):
        run(network, after_round=_stop_after(1))
    again = FakeNetwork([FakeSite(card("a")), FakeSite(card("b")), FakeSite(card("c", data_fingerprint="others"))])
    again.leaves("c")
    again.at(DEADLINE_S + 0.5, lambda: again.returns("c"))
    results = run(again, resume=True)
    assert {state for state, _ in _states(results, "c")[1:]} == {"absent"}


def _stop_after(number):
    def after_round(state):
        if state.round == number:
            raise KeyboardInterrupt

    return after_round


def test_a_resumed_run_waits_for_the_sites_that_were_with_it_to_come_back(run, tmp_path):
    run(_network(), out="whole")
    with pytest.raises(KeyboardInterrupt):
        run(_network(), after_round=_stop_after(2))
    again = _network()
    again.leaves("b")
    again.leaves("c")
    again.at(50.0, lambda: again.returns("b"))
    again.at(80.0, lambda: again.returns("c"))
    results = run(again, resume=True)
    assert _states(results, "c") == [ACCEPTED] * 5
    one, other = (load_file(tmp_path / "runs" / name / "model.safetensors") for name in ("run", "whole"))
    assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in other.items()}


def test_a_resumed_run_does_not_wait_again_for_a_site_that_was_silent(run):
    network = _network(c={1: silent})
    with pytest.raises(KeyboardInterrupt):
        run(network, after_round=_stop_after(2))
    again = _network()
    again.leaves("c")
    run(again, resume=True)
    assert again.time < 20


def test_a_new_run_begins_without_admitted_sites_that_are_not_there_after_a_while(run):
    network = _network()
    network.leaves("c")
    results = run(network)
    assert results.status == "finished"
    assert 30 < network.time < 60
