"""A site behind its socket answers as it does in process; one order runs at a time, however often it is asked."""

import math
from dataclasses import replace

import numpy as np
import pytest

from client.agent.control import change_control, decide_job
from client.agent.orders import Order
from client.agent.remote import RemoteSite, agent_progress, cancel_order
from client.books import Books
from client.policy import SitePolicy
from client.site import LocalSite
from multimix.config import preset
from multimix.contract.messages import LocalWork, Picture, weights_sha256
from multimix.contract.privacy import countersign
from multimix.contract.run_config import RunConfig
from multimix.data.simulation import simulated_hospitals
from multimix.errors import Refused, StoreError
from multimix.network import new_network
from multimix.privacy.entries import Commit, Refusal, Reservation
from multimix.privacy.ledger import FILE, create_ledger, read_ledger
from multimix.weights import export
from tests.client.agent.agents import EchoSite, agent_over, in_thread, numbers, refusal, same_bytes, wait_for
from tests.client.tiny_hospitals import DP, KEY, OPEN, order
from tests.client.tiny_hospitals import POPULATION as TINY

SIZE = 64
METHOD = preset("modern", image_size=SIZE, width=2)
WEIGHTS = export(new_network(METHOD.network, 0))
WORK = LocalWork(steps=3, images_per_group=2, total_steps=30)
MANY = LocalWork(steps=1000, images_per_group=1, total_steps=100_000)
POPULATION = TINY.model_copy(update={"declared_patients": 20})
PRIVACY = DP.model_copy(update={"declared_patients": 20})
SMALL = numbers()


def asked(kind="train", **fields):
    return order(kind, WEIGHTS, **({"method": METHOD, "work": WORK if kind == "train" else None} | fields))


def private(**fields):
    return asked(dp=PRIVACY, **fields)


def small(number=1, steps=3, job="job", **fields):
    return order("train", SMALL, round=number, work=WORK.model_copy(update={"steps": steps}), job_id=job, **fields)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    config = RunConfig(phantom_hospitals=1, phantom_patients=30, image_size=SIZE, cache=cache)
    return simulated_hospitals(config, nodes=1)[0]


def open_site(hospital):
    return LocalSite(hospital, OPEN, KEY.public_key(), device="cpu")


def private_site(hospital, folder, seed="0"):
    if not (folder / FILE).exists():
        create_ledger(folder, site=hospital.name, population=POPULATION.name)
    books = Books(folder, hospital.name, POPULATION, seed=seed)
    policy = SitePolicy(minimum_expected_patients=1.0)
    return LocalSite(hospital, policy, KEY.public_key(), device="cpu", books_of=lambda _plan: books)


def bodies(ledger, kind):
    return [entry.body for entry in read_ledger(ledger).entries if isinstance(entry.body, kind)]


# --- the same through the socket


def test_training_through_the_socket_gives_the_weights_of_training_in_process(hospital, tmp_path):
    signed = asked(evaluate_on="test", minimum_class_patients=1)
    here = open_site(hospital).train(signed, WEIGHTS)
    with agent_over(open_site(hospital), tmp_path) as agent:
        there = agent.remote.train(signed, WEIGHTS)
    assert same_bytes(there.weights, here.weights)
    assert there.report.model_dump(exclude={"seconds", "evaluation"}) == here.report.model_dump(
        exclude={"seconds", "evaluation"}
    )
    assert there.report.evaluation.statistics == here.report.evaluation.statistics


def test_private_training_through_the_socket_gives_the_weights_of_training_in_process(hospital, tmp_path):
    here = private_site(hospital, tmp_path / "here").train(private(), WEIGHTS)
    with agent_over(private_site(hospital, tmp_path / "there"), tmp_path / "agent") as agent:
        there = agent.remote.train(private(), WEIGHTS)
    assert same_bytes(there.weights, here.weights)
    assert there.report.weights_sha256 == here.report.weights_sha256
    assert there.report.ledger.holds()


def test_evaluation_with_pictures_and_the_card_are_the_same_through_the_socket(hospital, tmp_path):
    here, signed = open_site(hospital), asked("evaluate", pictures=2)
    with agent_over(open_site(hospital), tmp_path) as agent:
        there, card = agent.remote.evaluate(signed, WEIGHTS), agent.remote.describe()
    assert there.report.statistics == here.evaluate(signed, WEIGHTS).report.statistics
    assert there.pictures == here.evaluate(signed, WEIGHTS).pictures
    assert card == here.describe()


def test_the_share_of_the_budget_that_is_left_is_rounded_down_and_told_only_where_the_hospital_says_so(
    hospital, tmp_path
):
    shares = SitePolicy(share_budget=True)
    cases = (("open", shares, 0.333, 0.66), ("closed", SitePolicy(), 0.333, None), ("exposed", shares, math.inf, 0.0))
    for name, policy, spent, left in cases:
        with agent_over(open_site(hospital), tmp_path / name, policy=policy, spent=spent) as agent:
            assert agent.remote.describe().budget_left == left


def test_pictures_larger_than_a_message_arrive(tmp_path):
    pictures = tuple(Picture(caption=f"{n}", png=bytes([n]) * (5 << 20)) for n in range(2))
    with agent_over(EchoSite(pictures=pictures), tmp_path) as agent:
        signed = order("evaluate", SMALL)
        assert agent.remote.evaluate(signed, SMALL).pictures == pictures


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Refused("too_many_steps", "asked 3, allowed 2"), "too_many_steps"),
        (StoreError("store_damaged", "/data/SENTINEL"), "store_damaged"),
        (RuntimeError("SENTINEL"), "internal_error"),
        (MemoryError("SENTINEL"), "internal_error"),
    ],
)
def test_a_failure_crosses_the_socket_as_its_reason(tmp_path, caplog, capfd, failure, reason):
    with agent_over(EchoSite(failure=failure), tmp_path) as agent:
        try:
            agent.remote.train(small(), SMALL)
        except Refused as refused:
            told = refused
    assert (told.reason, told.detail) == (reason, getattr(failure, "detail", ""))
    printed = capfd.readouterr()
    assert "SENTINEL" not in caplog.text + printed.out + printed.err + str(agent.activity)


# --- one order


def test_the_same_order_joins_the_one_that_runs(tmp_path):
    site = EchoSite(held=True)
    with agent_over(site, tmp_path) as agent:
        patient = replace(agent.remote, wait_s=20.0)  # one that is received anew cuts off the other, which asks again
        answers = [in_thread(lambda: patient.train(small(), SMALL)) for _ in range(3)]
        agent.until_running()
        wait_for(lambda: len(site.rounds) == 1)
        site.release.set()
        assert all(same_bytes(answer().weights, SMALL) for answer in answers)
    assert site.rounds == [1]


def test_an_order_survives_the_connector_that_brought_it(tmp_path):
    import grpc

    from client.agent.agent_pb2_grpc import AgentStub
    from client.agent.wire import OPTIONS, order_parts, target

    site = EchoSite(held=True)
    with agent_over(site, tmp_path) as agent:
        with grpc.insecure_channel(target(str(agent.remote.socket)), options=OPTIONS) as channel:
            call = AgentStub(channel).Train(order_parts(small(), SMALL, ""))
            agent.until_running()
            call.cancel()
        answer = in_thread(lambda: agent.remote.train(small(), SMALL))
        site.release.set()
        assert same_bytes(answer().weights, SMALL)
    assert site.rounds == [1]


def test_the_last_answer_is_kept_and_sent_again_without_reading_the_weights_anew(tmp_path):
    site = EchoSite()
    with agent_over(site, tmp_path) as agent:
        first = agent.remote.train(small(), SMALL)
        again = agent.remote.train(small(), {"never": np.zeros(1, np.int64).astype(np.float32)})
        assert same_bytes(first.weights, again.weights)
        agent.remote.train(small(2), SMALL)
        agent.remote.train(small(), SMALL)  # one answer is kept, no more
    assert site.rounds == [1, 2, 1]
    assert [line.outcome for line in agent.activity] == ["answered", "sent_again", "answered", "answered"]


def test_another_order_while_one_runs_finds_the_site_busy(tmp_path):
    site = EchoSite(held=True)
    with agent_over(site, tmp_path) as agent:
        running = in_thread(lambda: agent.remote.train(small(2), SMALL))
        agent.until_running()
        others = [small(2, job="other"), small(3, job="other"), small(1), small(2, seed=6)]
        assert [refusal(agent.remote.train, each, SMALL) for each in others] == ["site_busy"] * 4
        site.release.set()
        assert same_bytes(running().weights, SMALL)
    assert site.rounds == [2]


def test_a_later_round_of_the_same_job_supersedes_the_one_that_runs(tmp_path):
    site = EchoSite(held=True)
    with agent_over(site, tmp_path) as agent:
        first = in_thread(lambda: agent.remote.train(small(1), SMALL))
        agent.until_running()
        second = in_thread(lambda: agent.remote.train(small(2), SMALL))
        assert first() == "cancelled"
        site.release.set()
        assert same_bytes(second().weights, SMALL)
    assert site.rounds == [1, 2]


def test_the_same_plan_against_another_head_of_the_ledger_is_answered_anew_and_in_turn(hospital, tmp_path):
    site = private_site(hospital, tmp_path / "ledger", seed=None)
    with agent_over(site, tmp_path / "agent") as agent:
        first = agent.remote.train(private(), WEIGHTS)
        known = countersign(hospital.name, first.report.ledger, KEY)
        second = agent.remote.train(replace(private(), countersigned=known), WEIGHTS)
    assert same_bytes(first.weights, second.weights)
    assert second.report.ledger.since == first.report.ledger.head


# --- progress and cancelling


def test_progress_tells_what_runs_and_how_far_it_is(tmp_path):
    site = EchoSite(held=True)
    with agent_over(site, tmp_path) as agent:
        assert agent_progress(agent.remote.socket).busy is False
        answer = in_thread(lambda: agent.remote.train(small(4), SMALL))
        agent.until_running()
        doing = agent_progress(agent.remote.socket)
        assert (doing.busy, doing.kind, doing.job_id, doing.round, doing.step, doing.steps) == (
            True, "train", "job", 4, 0, 3,
        )  # fmt: skip
        site.release.set()
        answer()
        assert agent_progress(agent.remote.socket).busy is False


def test_cancelling_ends_open_training_between_two_steps(hospital, tmp_path):
    with agent_over(open_site(hospital), tmp_path) as agent:
        answer = in_thread(lambda: agent.remote.train(asked(work=MANY, minimum_class_patients=1), WEIGHTS))
        wait_for(lambda: (doing := agent.orders.running) is not None and doing.step > 1)
        assert not agent.orders.cancel("0" * 64)
        assert cancel_order(agent.remote.socket)
        assert answer() == "cancelled"
    assert agent.activity[-1].outcome == "cancelled"


def test_a_private_round_cancelled_after_its_reservation_is_answered_later_with_the_same_secret(hospital, tmp_path):
    ledger, work = tmp_path / "ledger", LocalWork(steps=20, images_per_group=1, total_steps=4000)
    signed = asked(dp=PRIVACY.model_copy(update={"noise_multiplier": 20.0}), work=work)
    with agent_over(private_site(hospital, ledger, seed=None), tmp_path / "agent") as agent:
        answer = in_thread(lambda: agent.remote.train(signed, WEIGHTS))
        wait_for(lambda: (doing := agent.orders.running) is not None and doing.step > 1)
        cancel_order(agent.remote.socket)
        assert answer() == "cancelled"
        assert [body.reason for body in bodies(ledger, Refusal)] == ["cancelled"]
        trained = agent.remote.train(signed, WEIGHTS)
    (reserved,) = bodies(ledger, Reservation)  # spent once
    assert len(bodies(ledger, Commit)) == 1
    assert trained.report.weights_sha256 == weights_sha256(trained.weights)
    secret = (ledger / "secrets" / reserved.commitment).read_bytes()
    uninterrupted = tmp_path / "uninterrupted"
    site = private_site(hospital, uninterrupted)
    site.books_of = lambda _plan: _Known(uninterrupted, hospital.name, POPULATION, seed="x", secret=secret)
    assert same_bytes(site.train(signed, WEIGHTS).weights, trained.weights)


class _Known(Books):
    """Books whose noise is known."""

    def __init__(self, *arguments, secret, **named):
        super().__init__(*arguments, **named)
        object.__setattr__(self, "secret", secret)

    def _seeded_secret(self, order):
        return self.secret


def test_leaving_ends_what_runs(tmp_path):
    with agent_over(EchoSite(held=True), tmp_path) as agent:
        answer = in_thread(lambda: agent.remote.train(small(), SMALL))
        agent.until_running()
        change_control(tmp_path, lambda control: control.model_copy(update={"left": True}))
        assert answer() == "cancelled"


def leave(folder):
    change_control(folder, lambda control: control.model_copy(update={"left": True}))


def withdraw(folder):
    change_control(folder, lambda control: decide_job(control, "job", approved=False))


@pytest.mark.parametrize("decide", [leave, withdraw])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_no_answer_of_what_was_under_way_leaves_after_the_hospital_has_taken_part_no_more(tmp_path, decide, kind):
    change_control(tmp_path, lambda control: decide_job(control, "job", approved=True))
    site = EchoSite(held=True)
    signed = small() if kind == "train" else order("evaluate", SMALL)
    with agent_over(site, tmp_path, policy=SitePolicy(approve_jobs=True)) as agent:
        answer = in_thread(lambda: getattr(agent.remote, kind)(signed, SMALL))
        agent.until_running()
        decide(tmp_path)
        site.release.set()
        assert answer() == "cancelled"


def test_an_evaluation_that_was_cancelled_gives_no_figures_though_it_ends(tmp_path):
    site, signed = EchoSite(held=True), order("evaluate", SMALL)
    with agent_over(site, tmp_path) as agent:
        answer = in_thread(lambda: agent.remote.evaluate(signed, SMALL))
        agent.until_running()
        assert cancel_order(agent.remote.socket)
        site.release.set()
        assert answer() == "cancelled"
        assert agent.activity[-1].outcome == "cancelled"


def test_an_answer_that_is_ready_does_not_leave_after_the_hospital_has_left(tmp_path):
    """The decision falls when the order has ended and its answer is not sent yet."""
    with agent_over(EchoSite(), tmp_path) as agent:
        finish = Order.finish

        def left_meanwhile(order):
            leave(tmp_path)
            finish(order)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Order, "finish", left_meanwhile)
            assert refusal(agent.remote.evaluate, order("evaluate", SMALL), SMALL) == "site_left"


def test_a_pause_lets_what_was_taken_end_and_its_answer_leave(tmp_path):
    site = EchoSite(held=True)
    with agent_over(site, tmp_path) as agent:
        answer = in_thread(lambda: agent.remote.train(small(), SMALL))
        agent.until_running()
        change_control(tmp_path, lambda control: control.model_copy(update={"paused": True}))
        site.release.set()
        assert same_bytes(answer().weights, SMALL)


def test_a_private_answer_that_was_cancelled_at_its_end_is_committed_once_and_sent_when_asked_again(hospital, tmp_path):
    ledger, orders = tmp_path / "ledger", []
    site = private_site(hospital, ledger, seed=None)

    class CancelledAtTheEnd:
        describe = site.describe

        def train(self, signed, weights, *, progress=None):
            trained = site.train(signed, weights, progress=progress)
            if not orders:
                orders.append(cancel_order(agent.remote.socket))
            return trained

    with agent_over(CancelledAtTheEnd(), tmp_path / "agent") as agent:
        assert refusal(agent.remote.train, private(), WEIGHTS) == "cancelled"
        assert orders == [True]
        trained = agent.remote.train(private(), WEIGHTS)
    assert (len(bodies(ledger, Reservation)), len(bodies(ledger, Commit))) == (1, 1)
    assert trained.report.weights_sha256 == weights_sha256(trained.weights)


# --- an agent that is not there


def test_without_an_agent_the_order_is_refused_after_the_wait(tmp_path):
    assert refusal(RemoteSite(tmp_path / "none", wait_s=0.0).describe) == "agent_unavailable"


def test_an_agent_that_comes_back_answers_the_order_that_waits(tmp_path):
    (tmp_path / "socket").mkdir()
    answer = in_thread(lambda: RemoteSite(tmp_path / "socket" / "s", wait_s=20.0).train(small(), SMALL))
    with agent_over(EchoSite(held=True), tmp_path) as agent:
        agent.until_running()
    with agent_over(EchoSite(), tmp_path):
        assert same_bytes(answer().weights, SMALL)


def test_metrics_and_activity_name_no_job_and_no_patient_but_count(tmp_path):
    with agent_over(EchoSite(), tmp_path, policy=SitePolicy()) as agent:
        agent.remote.train(small(job="secret-job"), SMALL)
    metrics = (tmp_path / "metrics.prom").read_text()
    assert 'multimix_agent_orders_total{kind="train",outcome="answered"} 1.0' in metrics
    assert "multimix_agent_busy 0.0" in metrics
    assert "secret-job" not in metrics
    (line,) = agent.activity
    assert (line.job, line.round, line.bundle_claimed, line.kind) == ("secret-job", 1, "ab" * 32, "train")
