"""The agent's side of agent.proto. Who is at the other end of the socket is taken to be hostile.

An order is looked at in this sequence, and refused at the first fault: its declared size and protocol, the
coordinator's signature, what the hospital decided (paused, left, job not approved), whether the agent is free, its
weights. Then `Site` judges it as ever: policy, hashes, replays, budget. Before an answer leaves, the hospital's
decision is asked for again. Errors leave as reason codes.

While an order runs the other side is told that it runs, at a fixed interval, and nothing else: how long a step takes
follows how many patients it drew. What the hospital itself may ask is in `client.agent.local`.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.agent import agent_pb2_grpc
from client.agent.activity import Activity, ActivityLog, Repeats, claimed, now
from client.agent.agent_pb2 import DescribeReply, DescribeRequest, OrderPart, Refusal, ReplyPart
from client.agent.control import Control, check_job, check_taken, check_taking_part
from client.agent.metrics import Metrics
from client.agent.orders import Key, Order, Orders, Progress
from client.agent.wire import Answer, busy_part, check_protocol, read_chunks, read_order, refusal_part, reply_parts
from client.policy import SitePolicy
from multimix.contract.messages import RoundPlan, SiteCard, Weights
from multimix.contract.signing import SignedPlan, verified
from multimix.contract.site import Evaluated, Trained
from multimix.errors import InputError, Refused

log = logging.getLogger("multimix.agent")

_LOOK_S: Final = 0.25  # how soon a call that nobody listens to is given up
_BUSY_S: Final = 1.0  # between two signs of life
_HEADER_S: Final = 30.0
_MOST_JOINED: Final = 2  # calls that wait for one order: the connector's, and the one that took its place


class TrainingSite(Protocol):
    """A `Site` whose training says how far it is, and can be ended there."""

    def describe(self) -> SiteCard:
        """As `Site.describe`."""
        ...

    def train(self, signed: SignedPlan, weights: Weights, *, progress: Progress | None = None) -> Trained:
        """As `Site.train`; what `progress` raises ends the round."""
        ...

    def evaluate(self, signed: SignedPlan, weights: Weights) -> Evaluated:
        """As `Site.evaluate`."""
        ...


@dataclass(frozen=True)
class Served:
    """What an order is judged and worked with; it stays with the order though the site may change meanwhile."""

    site: TrainingSite
    coordinator: Ed25519PublicKey
    policy: SitePolicy
    most_bytes: int  # of an order's weights


@dataclass(frozen=True)
class Records:
    """Where the agent writes what happened."""

    activity: ActivityLog
    metrics: Metrics
    epsilon_fraction: Callable[[], float | None] = lambda: None  # of the lifetime's, infinity where it has no price
    waits: Callable[[str], None] = lambda _job: None  # told which job was not approved
    repeats: Repeats = field(default_factory=Repeats)

    def began(self) -> None:
        """An order began to run."""
        self.metrics.busy(True)
        self.metrics.write()

    def ended(self, order: Order, seconds: float) -> None:
        """An order ran."""
        reason = order.refused.reason if order.refused else ""
        outcome = {"": "answered", "cancelled": "cancelled"}.get(reason, "refused")
        seen = Seen(order.plan.kind, order.plan, order.key.plan_sha256, order.bundle)
        self.metrics.budget(self.epsilon_fraction())
        self.metrics.busy(False)
        self.write(seen, outcome, reason, seconds)

    def write(self, seen: "Seen", outcome: str, reason: str = "", seconds: float | None = None) -> None:
        """Write a line, unless it is a repetition, and count it."""
        plan = seen.plan
        happened = Activity.model_validate(
            {
                "time": now(),
                "kind": seen.kind,
                "job": plan.job_id if plan else "",
                "round": plan.round if plan else None,
                "plan_sha256": seen.plan_sha256,
                "bundle_claimed": claimed(seen.bundle),
                "outcome": outcome,
                "reason": reason,
                "seconds": None if seconds is None else round(seconds, 3),
            }
        )
        line = self.repeats.admit(happened)
        if line is not None:
            self.activity.append(line)
        self.metrics.ended(seen.kind, outcome, seconds or 0.0)

    def refused(self, seen: "Seen", reason: str) -> None:
        """Write a refusal of what was not begun; a job that only lacks approval is kept as waiting."""
        if reason == "job_not_approved" and seen.plan is not None:
            try:
                self.waits(seen.plan.job_id)
            except (OSError, InputError) as error:
                log.warning("waiting_job_not_kept: %s", type(error).__name__)
        self.write(seen, "refused", reason)

    def close(self) -> None:
        """Write what was counted and not told yet."""
        for line in self.repeats.rest():
            self.activity.append(line)
        self.metrics.close()


@dataclass
class Seen:
    """What is known so far of who asks for what; a plan only once its signature is verified."""

    kind: str
    plan: RoundPlan | None = None
    plan_sha256: str = ""
    bundle: str = ""


@dataclass
class _Newest:
    """The newest calls about a thing; an older one is cut off, for its connector may be dead and it takes a thread."""

    most: int
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _calls: dict[Hashable, list[grpc.ServicerContext]] = field(default_factory=dict)

    @contextmanager
    def holding(self, about: Hashable, context: grpc.ServicerContext) -> Iterator[None]:
        """Hold a place."""
        with self._lock:
            calls = [*self._calls.get(about, []), context]
            older, self._calls[about] = calls[: -self.most], calls[-self.most :]
        for each in older:
            each.cancel()
        try:
            yield
        finally:
            with self._lock:
                left = [each for each in self._calls.pop(about, []) if each is not context]
                self._calls |= {about: left} if left else {}


class AgentService(agent_pb2_grpc.AgentServicer):
    """The service over a site that is opened anew for each order."""

    def __init__(
        self, served: Callable[[], Served], control: Callable[[], Control], orders: Orders, records: Records
    ) -> None:
        self._served, self._control, self.orders, self._records = served, control, orders, records
        self._inbox, self._joined = _Newest(1), _Newest(_MOST_JOINED)

    def Describe(self, request: DescribeRequest, context: grpc.ServicerContext) -> DescribeReply:  # noqa: N802, ARG002
        """Answer with the card, though a job waits to be approved."""
        seen = Seen("describe", bundle=claimed(request.bundle_sha256))
        try:
            with _discreet():
                check_protocol(request.protocol)
                check_taking_part(self._control())
                card = self._card().model_dump_json()
        except Refused as refused:
            self._records.refused(seen, refused.reason)
            return DescribeReply(refusal=Refusal(reason=refused.reason, detail=refused.detail))
        self._records.write(seen, "answered")
        return DescribeReply(card=card)

    def _card(self) -> SiteCard:
        served = self._served()
        card = served.site.describe()
        spent = self._records.epsilon_fraction() if served.policy.share_budget else None
        if spent is None:
            return card
        return card.model_copy(update={"budget_left": math.floor(100 * (1 - min(1.0, spent))) / 100})

    def Train(self, request_iterator: Iterator[OrderPart], context: grpc.ServicerContext) -> Iterator[ReplyPart]:  # noqa: N802
        """Train for a round."""
        return self._answers(Seen("train"), request_iterator, context)

    def Evaluate(self, request_iterator: Iterator[OrderPart], context: grpc.ServicerContext) -> Iterator[ReplyPart]:  # noqa: N802
        """Evaluate the weights sent."""
        return self._answers(Seen("evaluate"), request_iterator, context)

    def _answers(self, seen: Seen, parts: Iterator[OrderPart], context: grpc.ServicerContext) -> Iterator[ReplyPart]:
        try:
            with _discreet():
                order, policy = self._taken(seen, parts, context)
            with self._joined.holding(order, context):
                yield from _busy(order, context)
                with _discreet():
                    reply = self._reply(order, policy)
                yield from reply
        except Refused as refused:
            self._records.refused(seen, refused.reason)
            yield refusal_part(refused.reason, refused.detail)
        except grpc.RpcError:  # the connector is gone, or another one took its place
            return

    def _reply(self, order: Order, policy: SitePolicy) -> Iterator[ReplyPart]:
        """Return the end of an order, if it came to one; Refused where the hospital has said no meanwhile."""
        if order.answer is not None:
            check_taken(self._control(), policy, order.plan.job_id)
            return reply_parts(order.answer)
        return iter([] if order.refused is None else [refusal_part(order.refused.reason, order.refused.detail)])

    def _taken(self, seen: Seen, parts: Iterator[OrderPart], context: grpc.ServicerContext) -> tuple[Order, SitePolicy]:
        """Return the order that answers this one, and the policy that it came under; Refused for whatever cannot be."""
        served = self._served()
        signed, header = read_order(_first(parts, context), most_bytes=served.most_bytes)
        seen.bundle = claimed(header.bundle_sha256)
        plan = verified(signed, served.coordinator)
        seen.plan, seen.plan_sha256 = plan, signed.sha256
        if plan.kind != seen.kind:
            raise Refused("plan_malformed", f"a plan to {plan.kind} sent as an order to {seen.kind}")
        if signed.countersigned is not None and not signed.countersigned.by(served.coordinator):
            raise Refused("countersignature_invalid")
        check_job(self._control(), served.policy, plan.job_id)
        key = Key(signed.sha256, header.countersigned)
        order = self.orders.find(key, plan)
        if order is None:
            with self._inbox.holding("weights", context):
                weights = read_chunks(parts, header.weights_bytes)
            work = _work(served.site, plan.kind, signed, weights)
            order = self.orders.accept(Order(key, plan, work, bundle=seen.bundle))
        elif order.answer is not None:
            self._records.write(seen, "sent_again")
        return order, served.policy


def _first(parts: Iterator[OrderPart], context: grpc.ServicerContext) -> OrderPart | None:
    """Return the header; a call that brings none for long is cut off, for it takes a thread."""
    timer = threading.Timer(_HEADER_S, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        return next(parts, None)
    finally:
        timer.cancel()


def _work(site: TrainingSite, kind: str, signed: SignedPlan, weights: Weights) -> Callable[[Progress], Answer]:
    """Return what is to be done; it alone holds the weights."""
    if kind == "evaluate":
        return lambda _progress: site.evaluate(signed, weights)
    return lambda progress: site.train(signed, weights, progress=progress)


def _busy(order: Order, context: grpc.ServicerContext) -> Iterator[ReplyPart]:
    """Yield signs of life, until the order is done or nobody listens."""
    told_s = time.monotonic()
    while not order.wait(_LOOK_S) and context.is_active():
        if time.monotonic() - told_s >= _BUSY_S:
            told_s += _BUSY_S  # of the clock, whatever training does
            yield busy_part()


@contextmanager
def _discreet() -> Iterator[None]:
    """Turn every error but `Refused` and a broken connection into a refusal without a word of its text."""
    try:
        yield
    except (Refused, grpc.RpcError):
        raise
    except InputError as error:
        raise Refused(error.reason) from None
    except Exception as error:  # noqa: BLE001  (its text may tell of patients)
        log.error("internal_error: %s", type(error).__name__)  # noqa: TRY400
        raise Refused("internal_error") from None
