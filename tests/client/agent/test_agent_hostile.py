"""A hostile app at the socket: whatever it asks for, only signed orders that policy allows are answered."""

import base64
import json
import pickle
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import grpc
import numpy as np
import pytest

from client.agent.agent_pb2 import Busy, DescribeRequest, OrderHeader, OrderPart, ReplyPart
from client.agent.agent_pb2_grpc import AgentStub
from client.agent.control import change_control, read_control
from client.agent.remote import agent_progress, cancel_order
from client.agent.wire import OPTIONS, PROTOCOL, SERVICE, order_parts, target
from client.policy import SitePolicy
from client.site import LocalSite
from multimix.contract.messages import LocalWork, canonical_json, weights_sha256
from multimix.contract.privacy import Extension, LedgerHead, countersign
from multimix.contract.signing import sign, simulation_key
from multimix.privacy.entries import Reservation
from multimix.privacy.ledger import read_ledger
from tests.client.agent.agents import MIB, EchoSite, agent_over, in_thread, numbers, refusal, wait_for
from tests.client.tiny_hospitals import (
    KEY,
    OPEN,
    PRIVATE_WEIGHTS,
    WEIGHTS,
    dealt,
    order,
    plan,
    private_order,
    private_plan,
    private_site,
    write_radiographs,
)

SMALL = numbers()
FOREIGN = simulation_key(99)
OWN = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))  # a connection of its own


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return dealt(write_radiographs(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("cache"))["both"]


@pytest.fixture
def echo():
    return EchoSite()


@pytest.fixture
def agent(echo, tmp_path):
    with agent_over(echo, tmp_path) as running:
        yield running


def small(number=1, **fields):
    return order("train", SMALL, round=number, **fields)


def raw(agent, parts, method="Train") -> str:
    """Send parts as they are; return the reason of the refusal, or how the call broke off."""
    with grpc.insecure_channel(target(str(agent.remote.socket)), options=OPTIONS) as channel:
        try:
            replies = list(getattr(AgentStub(channel), method)(iter(parts), timeout=30))
        except grpc.RpcError as error:
            return error.code().name
    return replies[-1].refusal.reason or "answered"


def parts_of(signed, weights=SMALL, **header) -> list[OrderPart]:
    parts = list(order_parts(signed, weights, ""))
    for name, value in header.items():
        setattr(parts[0].header, name, value)
    return parts


# --- who orders


def test_an_order_without_a_signature_is_refused(agent, echo):
    assert refusal(agent.remote.train, replace(small(), signature=""), SMALL) == "plan_signature"
    assert echo.rounds == []


def test_an_order_signed_by_another_key_is_refused(agent, echo):
    foreign = sign(plan("train", SMALL), FOREIGN)
    assert refusal(agent.remote.train, foreign, SMALL) == "plan_signature"
    assert (echo.rounds, agent.activity[-1].job) == ([], "")  # nobody writes words into the log unsigned


def test_a_forged_copy_of_an_order_that_was_answered_does_not_get_its_answer(agent):
    agent.remote.train(small(), SMALL)
    assert refusal(agent.remote.train, replace(small(), signature="AAAA"), SMALL) == "plan_signature"


def test_a_countersignature_by_another_key_is_refused(agent, echo):
    head = Extension(public_key="AA==", since=LedgerHead(), digests=(), head=LedgerHead())
    forged = replace(small(), countersigned=countersign("both", head, FOREIGN))
    assert refusal(agent.remote.train, forged, SMALL) == "countersignature_invalid"
    assert echo.rounds == []


def test_a_plan_of_an_unknown_kind_is_refused_though_it_is_signed(agent):
    document = json.loads(canonical_json(plan("train", SMALL))) | {"kind": "export"}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    forged = replace(small(), document=text, signature=base64.b64encode(KEY.sign(text.encode())).decode())
    assert refusal(agent.remote.train, forged, SMALL) == "plan_malformed"


def test_a_plan_to_train_is_not_evaluated(agent):
    assert raw(agent, parts_of(small()), "Evaluate") == "plan_malformed"


# --- what is sent


def test_an_unknown_protocol_is_refused(agent):
    assert raw(agent, parts_of(small(), protocol=PROTOCOL + 1)) == "protocol_unknown"
    with grpc.insecure_channel(target(str(agent.remote.socket))) as channel:
        assert AgentStub(channel).Describe(DescribeRequest(protocol=0)).refusal.reason == "protocol_unknown"


def test_a_declared_10_gb_is_refused_before_a_chunk_is_read(agent):
    sent = []

    def chunks():
        yield parts_of(small(), weights_bytes=10 << 30)[0]
        for _ in range(10_000):
            sent.append(1)
            yield OrderPart(chunk=bytes(MIB))

    assert raw(agent, chunks()) == "message_too_large"
    assert len(sent) < 100  # what the socket held when the refusal came


def test_a_stream_without_end_is_cut_off(agent, echo):
    endless = chain(parts_of(small()), repeat(OrderPart(chunk=bytes(MIB))))
    assert raw(agent, endless) == "request_malformed"
    assert echo.rounds == []


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [OrderPart(chunk=b"x")],
        [OrderPart()],
        [*parts_of(small()), OrderPart(chunk=b"x")],
        parts_of(small())[:1],
        [parts_of(small())[0], OrderPart(chunk=b"")],
        [*parts_of(small())[:1], parts_of(small())[0]],
        [OrderPart(header=OrderHeader(protocol=PROTOCOL, document="x", countersigned="x"))],
    ],
)
def test_a_stream_of_another_form_is_refused(agent, echo, parts):
    assert raw(agent, parts) == "request_malformed"
    assert echo.rounds == []


@pytest.mark.parametrize(("name", "most"), [("document", 1 << 16), ("signature", 256), ("countersigned", 4096)])
def test_a_text_of_the_header_beyond_its_length_is_refused(agent, name, most):
    assert raw(agent, parts_of(small(), **{name: "x" * (most + 1)})) == "request_malformed"


def test_of_a_claim_as_long_as_a_message_nothing_is_kept(agent):
    with grpc.insecure_channel(target(str(agent.remote.socket))) as channel:
        AgentStub(channel).Describe(DescribeRequest(protocol=PROTOCOL, bundle_sha256="a" * (3 * MIB)))
    assert agent.activity[-1].bundle_claimed == "malformed"


def test_a_message_above_4_mib_is_not_taken(agent):
    with grpc.insecure_channel(target(str(agent.remote.socket))) as channel:
        parts = [parts_of(small(), weights_bytes=16 * MIB)[0], OrderPart(chunk=bytes(5 * MIB))]
        with pytest.raises(grpc.RpcError) as caught:
            list(AgentStub(channel).Train(iter(parts), timeout=30))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_pickled_bytes_are_no_weights_and_are_not_opened(agent, echo):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("opened",))

    payload = pickle.dumps(Trap())
    parts = [parts_of(small(), weights_bytes=len(payload))[0], OrderPart(chunk=payload)]
    assert raw(agent, parts) == "request_malformed"
    assert echo.rounds == []


def test_what_a_hostile_app_claims_to_be_is_written_down_as_a_hash_or_not_at_all(agent):
    raw(agent, parts_of(small(), bundle_sha256="SENTINEL\n" * 10))
    assert agent.activity[-1].bundle_claimed == "malformed"


# --- who takes all there is


@contextmanager
def crowded(agent, calls=40):
    """More calls than the agent has threads for, each of which sends nothing; where one is turned away another is next."""
    done = threading.Event()

    def silent():
        done.wait(20)
        yield from ()

    with grpc.insecure_channel(target(str(agent.remote.socket)), options=OWN) as channel:
        held = [AgentStub(channel).Train(silent()) for _ in range(calls)]
        try:
            yield
        finally:
            done.set()
            for each in held:
                each.cancel()


def test_a_call_that_no_thread_is_free_for_is_turned_away_and_not_kept(agent):
    def asks() -> str:
        with grpc.insecure_channel(target(str(agent.remote.socket)), options=OWN) as channel:
            try:
                AgentStub(channel).Describe(DescribeRequest(protocol=PROTOCOL), timeout=5)
            except grpc.RpcError as error:
                return error.code().name
        return "answered"

    with crowded(agent):
        wait_for(lambda: asks() == "RESOURCE_EXHAUSTED")


def test_connections_beyond_64_do_not_take_the_agents_file_descriptors(agent):
    before = len(list(Path("/proc/self/fd").iterdir()))
    mine = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    try:
        for each in mine:
            each.connect(str(agent.remote.socket))
        wait_for(lambda: len(list(Path("/proc/self/fd").iterdir())) - before - len(mine) <= 64)
        assert agent_progress(agent.remote.socket) is not None
    finally:
        for each in mine:
            each.close()


def test_the_hospital_sees_and_ends_what_runs_however_many_calls_the_connector_holds(tmp_path):
    with agent_over(EchoSite(held=True), tmp_path) as agent:
        answer = in_thread(lambda: agent.remote.train(small(), SMALL))
        agent.until_running()
        with crowded(agent):
            assert agent_progress(agent.remote.socket).busy
            assert cancel_order(agent.remote.socket)
        assert answer() == "cancelled"


def test_of_calls_that_wait_for_one_order_the_two_newest_stay(tmp_path):
    site = EchoSite(held=True)
    with (
        agent_over(site, tmp_path) as agent,
        grpc.insecure_channel(target(str(agent.remote.socket)), options=OWN) as channel,
    ):
        joined = []
        for number in range(5):
            joined.append(AgentStub(channel).Train(iter(parts_of(small())), timeout=20))
            agent.until_running()
            wait_for(lambda last=number: [each.done() for each in joined[:last]] == [True] * (last - 1) + [False] * min(last, 1))  # fmt: skip
        site.release.set()
        assert [list(each)[-1].WhichOneof("part") for each in joined[-2:]] == ["chunk", "chunk"]


@pytest.mark.parametrize("method", ["Cancel", "Progress"])
def test_what_the_hospital_asks_is_not_offered_at_the_connectors_socket(agent, method):
    with grpc.insecure_channel(target(str(agent.remote.socket))) as channel:
        for service in (SERVICE, "multimix.agent.v1.Local"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{service}/{method}")(b"", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_that_waits_is_told_that_the_agent_is_busy_once_a_second_and_no_step(tmp_path):
    site, told = EchoSite(held=True), []
    signed = order("train", SMALL, work=LocalWork(steps=1000, images_per_group=1, total_steps=1000))
    with (
        agent_over(site, tmp_path) as agent,
        grpc.insecure_channel(target(str(agent.remote.socket)), options=OWN) as channel,
    ):
        began = time.monotonic()
        for part in AgentStub(channel).Train(iter(parts_of(signed)), timeout=20):
            if part.WhichOneof("part") == "busy":
                told.append(part.SerializeToString())
                if len(told) == 2:
                    took = time.monotonic() - began
                    site.release.set()
    assert took >= 2.0
    assert set(told) == {ReplyPart(busy=Busy()).SerializeToString()}


def test_a_flood_of_calls_without_a_signed_plan_is_one_line_with_their_number(tmp_path):
    with agent_over(EchoSite(), tmp_path) as agent:
        agent.remote.train(small(), SMALL)
        with grpc.insecure_channel(target(str(agent.remote.socket))) as channel:
            for _ in range(50):
                AgentStub(channel).Describe(DescribeRequest(protocol=0))
            raw(agent, [OrderPart()])
        assert [line.outcome for line in agent.activity] == ["answered", "refused"]
    assert [line.repeats for line in agent.activity] == [0, 0, 49]


def test_a_job_that_waits_is_kept_whatever_is_asked_after_it(tmp_path):
    with agent_over(EchoSite(), tmp_path, policy=SitePolicy(approve_jobs=True)) as agent:
        assert refusal(agent.remote.train, small(job_id="lung-1"), SMALL) == "job_not_approved"
        foreign = sign(plan("train", SMALL, job_id="forged"), FOREIGN)
        assert refusal(agent.remote.train, foreign, SMALL) == "plan_signature"
        assert read_control(tmp_path).waiting == ("lung-1",)


# --- what policy allows, at a real site


def test_a_replayed_older_round_is_refused_after_a_restart_too(hospital, tmp_path):
    for number, expected in ((2, "answered"), (1, "plan_replayed")):
        with agent_over(private_site(hospital, tmp_path / "ledger"), tmp_path / "agent") as agent:
            assert refusal(agent.remote.train, private_order(round=number), PRIVATE_WEIGHTS) == expected


def test_other_weights_than_the_plan_names_are_refused(hospital, tmp_path):
    changed = {name: value + 1 for name, value in WEIGHTS.items()}
    with agent_over(LocalSite(hospital, OPEN, KEY.public_key(), device="cpu"), tmp_path) as agent:
        assert refusal(agent.remote.train, order(), changed) == "weights_hash"


def test_weights_that_are_no_numbers_are_never_answered_with_weights(hospital, tmp_path):
    nan = {name: np.full_like(value, np.nan) for name, value in WEIGHTS.items()}
    with agent_over(LocalSite(hospital, OPEN, KEY.public_key(), device="cpu"), tmp_path) as agent:
        assert refusal(agent.remote.train, order("train", nan), nan) in {"training_diverged", "internal_error"}


def test_an_app_that_asks_for_everything_gets_what_policy_releases_and_no_more(hospital, tmp_path):
    site = private_site(hospital, tmp_path / "ledger")
    everything = {"evaluate_on": "test", "pictures": 64}
    with agent_over(site, tmp_path / "agent") as agent:
        trained = agent.remote.train(sign(private_plan(**everything), KEY), PRIVATE_WEIGHTS)
        assert (trained.report.evaluation, trained.report.losses, trained.report.teachers) == (None, {}, {})
        assert set(trained.weights) == set(PRIVATE_WEIGHTS)
        evaluation = order("evaluate", WEIGHTS, pictures=64)
        assert refusal(agent.remote.evaluate, evaluation, WEIGHTS) == "evaluation_not_released"
        assert refusal(agent.remote.train, order(round=2), WEIGHTS) == "dp_required"
        weak = private_order({"noise_multiplier": 0.1}, round=2)
        assert refusal(agent.remote.train, weak, PRIVATE_WEIGHTS) == "dp_noise"
    assert sum(isinstance(entry.body, Reservation) for entry in read_ledger(tmp_path / "ledger").entries) == 1


# --- what the hospital decides


def test_a_job_waits_for_approval_and_the_site_still_describes_itself(hospital, tmp_path):
    policy = SitePolicy(approve_jobs=True)
    with agent_over(LocalSite(hospital, OPEN, KEY.public_key(), device="cpu"), tmp_path, policy=policy) as agent:
        assert refusal(agent.remote.train, order(), WEIGHTS) == "job_not_approved"
        assert agent.remote.describe().site == "both"
        change_control(tmp_path, lambda control: control.model_copy(update={"approved": ("job",)}))
        assert refusal(agent.remote.train, order(), WEIGHTS) == "answered"


@pytest.mark.parametrize(("decision", "reason"), [("paused", "site_paused"), ("left", "site_left")])
def test_a_site_that_takes_no_part_refuses_everything(agent, tmp_path, decision, reason):
    agent.remote.train(small(), SMALL)
    change_control(tmp_path, lambda control: control.model_copy(update={decision: True}))
    assert refusal(agent.remote.describe) == reason
    assert refusal(agent.remote.train, small(), SMALL) == reason  # an answer that was kept, too
    assert refusal(agent.remote.train, small(2), SMALL) == reason


def test_decisions_that_cannot_be_read_let_nothing_train(agent, tmp_path):
    (tmp_path / "control.json").write_text("{")
    assert refusal(agent.remote.train, small(), SMALL) == "control_unusable"


def test_weights_of_an_order_are_bound_to_it(agent):
    trained = agent.remote.train(small(), SMALL)
    assert trained.report.weights_sha256 == weights_sha256(SMALL)
