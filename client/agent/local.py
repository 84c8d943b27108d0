"""What the hospital itself may ask of its agent: what runs, and to end it. Also whether the agent can work at all.

Served on a socket of the agent's own user, with threads of its own: no connector keeps the hospital from asking.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.agent import agent_pb2_grpc
from client.agent.agent_pb2 import CancelReply, CancelRequest, ProgressReply, ProgressRequest
from client.agent.orders import Orders
from client.agent.wire import SERVICE

log = logging.getLogger("multimix.agent")

_LOOK_S: Final = 5.0  # how long what was found counts: looking reads the whole ledger


class LocalService(agent_pb2_grpc.LocalServicer):
    """The hospital's side of agent.proto."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def Cancel(self, request: CancelRequest, context: grpc.ServicerContext) -> CancelReply:  # noqa: N802, ARG002
        """Cancel what runs; no answer of it leaves."""
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


class Health(health_pb2_grpc.HealthServicer):
    """`grpc.health.v1`, to be asked. `Watch` is not offered: each that watches would take a thread for good."""

    def __init__(self, check: Callable[[], None]) -> None:
        """`check` raises where decisions, store or ledger cannot be used."""
        self._check, self._lock = check, threading.Lock()
        self._looked_s, self._serving = -_LOOK_S, False

    def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> object:  # noqa: N802
        """Answer SERVING or NOT_SERVING; NOT_FOUND for another service."""
        if request.service not in {"", SERVICE}:
            context.abort(grpc.StatusCode.NOT_FOUND, "")
        answer = health_pb2.HealthCheckResponse
        return answer(status=answer.SERVING if self._works() else answer.NOT_SERVING)

    def _works(self) -> bool:
        with self._lock:
            if time.monotonic() - self._looked_s >= _LOOK_S:
                self._serving = self._look()
                self._looked_s = time.monotonic()
            return self._serving

    def _look(self) -> bool:
        try:
            self._check()
        except Exception as error:  # noqa: BLE001  (whatever it is; its text may tell of patients)
            log.warning("not_serving: %s", getattr(error, "reason", type(error).__name__))
            return False
        return True
