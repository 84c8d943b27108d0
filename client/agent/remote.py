"""`Site` over the agent's socket: what the app on the networked side calls. No torch, no image, no secret.

Calls have no deadline: a round takes as long as it takes. Where the agent is restarted meanwhile the order is asked
again: it joins the order that runs, or is answered by the answer kept.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import grpc

from client.agent.agent_pb2 import CancelRequest, DescribeRequest, ProgressReply, ProgressRequest, ReplyPart
from client.agent.agent_pb2_grpc import AgentStub, LocalStub
from client.agent.wire import OPTIONS, PROTOCOL, local_socket, order_parts, read_reply, target
from multimix.contract.messages import SiteCard, Weights
from multimix.contract.signing import SignedPlan
from multimix.contract.site import Evaluated, Trained
from multimix.errors import Refused

log = logging.getLogger("multimix.client")

_RETRY_S: Final = 0.5
_GONE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
_ASK_S: Final = 5.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class RemoteSite:
    """A site behind its agent's socket."""

    socket: Path
    bundle_sha256: str = ""  # of the app, which the agent writes down as claimed
    wait_s: float = 120.0  # for an agent that is restarted, since it last said anything

    def describe(self) -> SiteCard:
        """As `Site.describe`; Refused `agent_unavailable` where no agent answers."""
        request = DescribeRequest(protocol=PROTOCOL, bundle_sha256=self.bundle_sha256)
        reply = self._asked(lambda stub, _heard: stub.Describe(request))
        if reply.WhichOneof("answer") != "card":
            raise Refused(reply.refusal.reason or "reply_malformed", reply.refusal.detail)
        try:
            return SiteCard.model_validate_json(reply.card)
        except ValueError:
            raise Refused("reply_malformed") from None

    def train(self, signed: SignedPlan, weights: Weights) -> Trained:
        """As `Site.train`; Refused `agent_unavailable`."""

        def ask(stub: AgentStub, heard: Callable[[], None]) -> Trained | Evaluated:
            answer = stub.Train(order_parts(signed, weights, self.bundle_sha256))
            return read_reply(_heard(answer, heard), trained=True)

        answer = self._asked(ask)
        if not isinstance(answer, Trained):
            raise Refused("reply_malformed")
        return answer

    def evaluate(self, signed: SignedPlan, weights: Weights) -> Evaluated:
        """As `Site.evaluate`; Refused `agent_unavailable`."""

        def ask(stub: AgentStub, heard: Callable[[], None]) -> Trained | Evaluated:
            answer = stub.Evaluate(order_parts(signed, weights, self.bundle_sha256))
            return read_reply(_heard(answer, heard), trained=False)

        answer = self._asked(ask)
        if not isinstance(answer, Evaluated):
            raise Refused("reply_malformed")
        return answer

    def _asked(self, ask: Callable[[AgentStub, Callable[[], None]], _T]) -> _T:
        """Ask until the agent answers, or has been silent for too long."""
        last = time.monotonic()

        def heard() -> None:
            nonlocal last
            last = time.monotonic()

        while True:
            try:
                with grpc.insecure_channel(target(str(self.socket)), options=_CHANNEL) as channel:
                    return ask(AgentStub(channel), heard)
            except grpc.RpcError as error:
                refused = _refusal(error)
                if refused is not None:
                    raise refused from None
            if time.monotonic() - last >= self.wait_s:
                raise Refused("agent_unavailable")
            log.info("the site agent does not answer; asking again")
            time.sleep(_RETRY_S)


# A channel of its own for each try: a shared one would wait ever longer between its own tries.
_CHANNEL: Final = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))


def agent_progress(socket: Path) -> ProgressReply | None:
    """Return what the agent at this socket does; None where none answers, or its own socket is not this user's."""
    return _once(socket, lambda stub: stub.Progress(ProgressRequest(), timeout=_ASK_S))


def cancel_order(socket: Path) -> bool:
    """Cancel what the agent at this socket does, so that it does not leave; return whether there was anything."""
    reply = _once(socket, lambda stub: stub.Cancel(CancelRequest(), timeout=_ASK_S))
    return bool(reply and reply.cancelled)


def _once(socket: Path, ask: Callable[[LocalStub], _T]) -> _T | None:
    try:
        with grpc.insecure_channel(target(str(local_socket(socket).absolute())), options=_CHANNEL) as channel:
            return ask(LocalStub(channel))
    except grpc.RpcError:
        return None


def _heard(parts: Iterator[ReplyPart], heard: Callable[[], None]) -> Iterator[ReplyPart]:
    for part in parts:
        heard()
        yield part


def _refusal(error: grpc.RpcError) -> Refused | None:
    """Return why this error is the end; None where it is worth asking again. gRPC's text goes nowhere."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    if code in _GONE:
        return None
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Refused("site_busy")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Refused("protocol_unknown")
    log.error("the site agent's answer broke off: %s", code.name)
    return Refused("reply_malformed")
