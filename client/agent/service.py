"""The agent's side of agent.proto. Who is at the other end of the socket is taken to be hostile.

An order is looked at in this sequence, and refused at the first fault: its declared size and protocol, the
coordinator's signature, what the hospital decided (paused, left, job not approved), whether the agent is free, its
weights. Then `Site` judges it as ever: policy, hashes, replays, budget. Errors leave as reason codes.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.agent import agent_pb2_grpc
from client.agent.activity import Activity, ActivityLog, claimed, now
from client.agent.agent_pb2 import (
    CancelReply,
    CancelRequest,
    DescribeReply,
    DescribeRequest,
    OrderPart,
    ProgressReply,
    ProgressRequest,
    Refusal,
    ReplyPart,
)
from client.agent.control import Control, check_job, check_taking_part
from client.agent.metrics import Metrics
from client.agent.orders import Key, Order, Orders, Progress
from client.agent.wire import Answer, check_protocol, read_chunks, read_order, refusal_part, reply_parts, step_part
from client.policy import SitePolicy
from multimix.contract.messages import RoundPlan, SiteCard, Weights
from multimix.contract.signing import SignedPlan, verified
from multimix.contract.site import Evaluated, Trained
from multimix.errors import InputError, Refused

log = logging.getLogger("multimix.agent")

_PROGRESS_S: Final = 0.25
_HEADER_S: Final = 30.0


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
    epsilon_fraction: Callable[[], float | None] = lambda: None

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
        """Write a line and count it."""
        plan = seen.plan
        self.activity.append(
            Activity.model_validate(
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
        )
        self.metrics.ended(seen.kind, outcome, seconds or 0.0)


@dataclass
class Seen:
    """What is known so far of who asks for what; a plan only once its signature is verified."""

    kind: str
    plan: RoundPlan | None = None
    plan_sha256: str = ""
    bundle: str = ""


@dataclass
class _Inbox:
    """One order is received at a time; a newer one cuts off an older one, whose connector may be dead."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _current: grpc.ServicerContext | None = None

    @contextmanager
    def receiving(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Hold the place."""
        with self._lock:
            older, self._current = self._current, context
        if older is not None:
            older.cancel()
        try:
            yield
        finally:
            with self._lock:
                if self._current is context:
                    self._current = None


class AgentService(agent_pb2_grpc.AgentServicer):
    """The service over a site that is opened anew for each order."""

    def __init__(
        self, served: Callable[[], Served], control: Callable[[], Control], orders: Orders, records: Records
    ) -> None:
        self._served, self._control, self._orders, self._records = served, control, orders, records
        self._inbox = _Inbox()

    def Describe(self, request: DescribeRequest, context: grpc.ServicerContext) -> DescribeReply:  # noqa: N802, ARG002
        """Answer with the card, though a job waits to be approved."""
        seen = Seen("describe", bundle=request.bundle_sha256)
        try:
            with _discreet():
                check_protocol(request.protocol)
                check_taking_part(self._control())
                card = self._card().model_dump_json()
        except Refused as refused:
            self._records.write(seen, "refused", refused.reason)
            return DescribeReply(refusal=Refusal(reason=refused.reason, detail=refused.detail))
        self._records.write(seen, "answered")
        return DescribeReply(card=card)

    def _card(self) -> SiteCard:
        served = self._served()
        card = served.site.describe()
        spent = self._records.epsilon_fraction() if served.policy.share_budget else None
        if spent is None:
            return card
        return card.model_copy(update={"budget_left": max(0, math.floor(100 * (1 - spent))) / 100})

    def Train(self, request_iterator: Iterator[OrderPart], context: grpc.ServicerContext) -> Iterator[ReplyPart]:  # noqa: N802
        """Train for a round."""
        return self._answers(Seen("train"), request_iterator, context)

    def Evaluate(self, request_iterator: Iterator[OrderPart], context: grpc.ServicerContext) -> Iterator[ReplyPart]:  # noqa: N802
        """Evaluate the weights sent."""
        return self._answers(Seen("evaluate"), request_iterator, context)

    def Cancel(self, request: CancelRequest, context: grpc.ServicerContext) -> CancelReply:  # noqa: N802, ARG002
        """Cancel what runs."""
        return CancelReply(cancelled=self._orders.cancel(request.plan_sha256))

    def Progress(self, request: ProgressRequest, context: grpc.ServicerContext) -> ProgressReply:  # noqa: N802, ARG002
        """Say what runs."""
        order = self._orders.running
        if order is None:
            return ProgressReply()
        return ProgressReply(
            busy=True,
            kind=order.plan.kind,
            job_id=order.plan.job_id,
            round=order.plan.round,
            plan_sha256=order.key.plan_sha256,
            step=order.step,
            steps=order.steps,
        )

    def _answers(self, seen: Seen, parts: Iterator[OrderPart], context: grpc.ServicerContext) -> Iterator[ReplyPart]:
        try:
            with _discreet():
                order = self._taken(seen, parts, context)
        except Refused as refused:
            self._records.write(seen, "refused", refused.reason)
            yield refusal_part(refused.reason, refused.detail)
            return
        except grpc.RpcError:  # the connector is gone, or another one took its place
            return
        yield from _progress(order, context)
        if order.answer is not None:
            yield from reply_parts(order.answer)
        elif order.refused is not None:
            yield refusal_part(order.refused.reason, order.refused.detail)

    def _taken(self, seen: Seen, parts: Iterator[OrderPart], context: grpc.ServicerContext) -> Order:
        """Return the order that answers this one; whatever cannot be answered is refused."""
        served = self._served()
        signed, header = read_order(_first(parts, context), most_bytes=served.most_bytes)
        seen.bundle = header.bundle_sha256
        plan = verified(signed, served.coordinator)
        seen.plan, seen.plan_sha256 = plan, signed.sha256
        if plan.kind != seen.kind:
            raise Refused("plan_malformed", f"a plan to {plan.kind} sent as an order to {seen.kind}")
        if signed.countersigned is not None and not signed.countersigned.by(served.coordinator):
            raise Refused("countersignature_invalid")
        check_job(self._control(), served.policy, plan.job_id)
        key = Key(signed.sha256, header.countersigned)
        order = self._orders.find(key, plan)
        if order is None:
            with self._inbox.receiving(context):
                weights = read_chunks(parts, header.weights_bytes)
            work = _work(served.site, plan.kind, signed, weights)
            order = self._orders.accept(Order(key, plan, work, bundle=seen.bundle))
        elif order.answer is not None:
            self._records.write(seen, "sent_again")
        return order


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


def _progress(order: Order, context: grpc.ServicerContext) -> Iterator[ReplyPart]:
    """Yield each step that is seen, until the order is done or nobody listens."""
    told = -1
    while not order.wait(_PROGRESS_S) and context.is_active():
        if order.step != told:
            told = order.step
            yield step_part(told, order.steps)


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
