"""Flower's Grid as a plain loop: the same server and client code, in one process or a few, without a SuperLink.

Each node is one hospital. Messages are handed to the real ClientApp; with `workers` above 1 they are spread over
that many processes with one torch thread each, which on two cores is faster than one process with two threads and
gives the same bits.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from multimix.contract.run_config import Scalar
from multimix.processes import end_with_parent

App = Callable[[Message, Context], Message]

_RUN = 1
_SERVER = 1
_FIRST_NODE = 2
_APP_CRASHED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def answer(message: Message, context: Context) -> Message:
    """Run the real ClientApp on one order."""
    from client.app import app  # noqa: PLC0415  (in the worker)

    reply: Message = app(message, context)
    return reply


class InProcessGrid(Grid):
    """Runs the ClientApp of `nodes` hospitals right here.

    Without workers orders have no deadline, and a crash of the app ends the run.
    """

    def __init__(self, run_config: dict[str, Scalar], *, nodes: int, workers: int = 1, app: App = answer) -> None:
        """Workers are started on first use; call `close` when done."""
        self._app = app
        self._run_config = run_config
        self._nodes = nodes
        self._workers = min(workers, nodes)
        self._pool: ProcessPoolExecutor | None = None
        # Messages take their sender from the process; in Flower the SuperLink sets it.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN, _SERVER, _RUN

    def close(self) -> None:
        """Stop the workers, at once where one is still training."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())  # noqa: SLF001  (no public way to stop a busy worker)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def get_node_ids(self) -> Iterable[int]:
        """Return one node a hospital."""
        return range(_FIRST_NODE, _FIRST_NODE + self._nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run every order and yield the replies that came in time, in the order of the orders."""
        orders = list(messages)
        for number, message in enumerate(orders):
            message.metadata.__dict__["_message_id"] = f"in-process-{id(self)}-{number}"
        if self._workers == 1:
            return self._one_by_one(orders, timeout)
        return self._spread(orders, timeout)

    def _one_by_one(self, orders: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the orders here; those not begun by the deadline go unanswered."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for message in orders:
            if deadline is not None and time.monotonic() > deadline:
                break
            yield self._app(message, self._context(message))

    def _spread(self, orders: list[Message], timeout: float | None) -> Iterator[Message]:
        """Give every order to any free worker; a site has no state between rounds that could matter."""
        if self._pool is None:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_leave_interrupts)
        deadline = None if timeout is None else time.monotonic() + timeout
        # Each future goes as soon as its reply is handed over: a thousand replies need not be in memory at once.
        futures = deque((self._pool.submit(self._app, order, self._context(order)), order) for order in orders)
        broken = False
        while futures:
            future, order = futures.popleft()
            wait((future,), timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not future.done():  # it goes on to its end and keeps its worker; one that has not begun does not begin
                future.cancel()
                continue
            broken = broken or isinstance(future.exception(), BrokenProcessPool)
            yield _result(future, order)
        if broken:
            self.close()

    def _context(self, message: Message) -> Context:
        partition = message.metadata.dst_node_id - _FIRST_NODE
        return Context(
            run_id=_RUN,
            node_id=message.metadata.dst_node_id,
            node_config={"partition-id": partition, "num-partitions": self._nodes},
            state=RecordDict(),
            run_config=self._run_config,
        )

    # The rest of Flower's interface has no meaning in one process.
    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """No run information in process."""
        raise NotImplementedError("an in-process grid has no Flower run")

    def create_message(self, *_args: Any, **_kwargs: Any) -> Message:
        """Not offered: construct Message."""
        raise NotImplementedError("construct flwr.app.Message instead")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not offered: orders are answered at once."""
        raise NotImplementedError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not offered: orders are answered at once."""
        raise NotImplementedError("use send_and_receive")


def _leave_interrupts() -> None:
    """Let the first process alone answer Ctrl-C: it saves, and stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if (parent := parent_process()) is not None and not parent.is_alive():  # it died before that
        os._exit(1)


def _result(future: Future[Message], order: Message) -> Message:
    """Return the reply, or the error that Flower would send for an app that crashed or a process that died."""
    if (error := future.exception()) is not None:
        return Message(Error(_APP_CRASHED, type(error).__name__), reply_to=order)
    return future.result()
