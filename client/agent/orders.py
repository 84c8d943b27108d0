"""One order at a time: joined while it runs, sent again once answered, superseded by a later round of its job.

An order runs in a thread of its own and outlives the call that brought it: a connector may die and come back.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from client.agent.wire import Answer
from multimix.contract.messages import RoundPlan
from multimix.errors import InputError, Refused

log = logging.getLogger("multimix.agent")

Progress = Callable[[int], None]
_LOOK_S: Final = 1.0  # how often a running order asks whether the hospital still lets it run
_MOST_WAITING: Final = 2


@dataclass(frozen=True)
class Key:
    """What makes two orders the same: the plan, and the head of the ledger that the answer is proved against."""

    plan_sha256: str
    countersigned: str = ""


class Order:
    """An order that waits, runs or ran."""

    def __init__(self, key: Key, plan: RoundPlan, work: Callable[[Progress], Answer], *, bundle: str = "") -> None:
        self.key, self.plan, self.bundle = key, plan, bundle
        self.step, self.steps = 0, plan.work.steps if plan.work else 0
        self.answer: Answer | None = None
        self.refused: Refused | None = None
        self._work: Callable[[Progress], Answer] | None = work
        self._cancelled, self._done = threading.Event(), threading.Event()

    def cancel(self) -> None:
        """End it after the step it is in; one that is done stays as it is."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was told to end."""
        return self._cancelled.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is done; return whether it is."""
        return self._done.wait(timeout_s)

    def run(self, stopped: Callable[[RoundPlan], bool]) -> None:
        """Do the work, unless cancelled or stopped meanwhile; keep an answer or a refusal, and nothing else of it."""
        try:
            self.answer = self._worked(stopped)
        except Refused as refused:
            self.refused = Refused(refused.reason, refused.detail)  # without the traceback, which holds the weights
        except InputError as error:
            self.refused = Refused(error.reason)
        except Exception as error:  # noqa: BLE001  (its text may tell of patients)
            log.error("internal_error: %s", type(error).__name__)  # noqa: TRY400
            self.refused = Refused("internal_error")
        self._work = None

    def drop_if_cancelled(self) -> None:
        """Keep no answer that was cancelled after the last look; whoever cancels holds the same lock as who asks."""
        if self.cancelled and self.answer is not None:
            self.answer, self.refused = None, Refused("cancelled")

    def finish(self) -> None:
        """Wake who waits."""
        self._done.set()

    def _worked(self, stopped: Callable[[RoundPlan], bool]) -> Answer:
        looked = -_LOOK_S

        def progress(step: int) -> None:
            nonlocal looked
            self.step = step
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                if stopped(self.plan):
                    self.cancel()
            if self.cancelled:
                raise Refused("cancelled")

        progress(0)
        if self._work is None:
            raise Refused("cancelled")
        answer = self._work(progress)
        if self.cancelled or stopped(self.plan):  # an evaluation has no steps at which it could have been ended
            raise Refused("cancelled")
        return answer


class Orders:
    """The orders of an agent: at most one runs, and the last answer is kept."""

    def __init__(
        self,
        *,
        stopped: Callable[[RoundPlan], bool] = lambda _plan: False,
        began: Callable[[], None] = lambda: None,
        ended: Callable[[Order, float], None] = lambda _order, _seconds: None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Run nothing yet.

        `stopped` says whether the hospital has taken its leave back meanwhile; `prepare` is called in the thread that
        works; `ended` is told the seconds, before anyone is answered.
        """
        self._stopped, self._began, self._ended = stopped, began, ended
        self._lock, self._waiting = threading.Lock(), list[Order]()
        self._kept: Order | None = None
        self._worker = ThreadPoolExecutor(1, "order", initializer=prepare)

    @property
    def running(self) -> Order | None:
        """The order that runs, or runs next."""
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def find(self, key: Key, plan: RoundPlan) -> Order | None:
        """Return the same order if it runs or was answered last; Refused `site_busy` if this one cannot be taken."""
        with self._lock:
            return self._found(key, plan)

    def accept(self, order: Order) -> Order:
        """Take an order, which cancels an earlier round of its job; return it, or the same one that came before.

        Raises:
            Refused: `site_busy`.
        """
        with self._lock:
            same = self._found(order.key, order.plan)
            if same is not None:
                return same
            for each in self._waiting:
                if each.key.plan_sha256 != order.key.plan_sha256:
                    each.cancel()
            self._kept = None
            self._waiting.append(order)
            self._worker.submit(self._run, order)
            return order

    def cancel(self, plan_sha256: str = "") -> bool:
        """Cancel what runs, if it is this plan or none is given, so that no answer of it leaves.

        Return whether anything was; budget that it has spent stays spent.
        """
        with self._lock:
            chosen = [each for each in self._waiting if plan_sha256 in ("", each.key.plan_sha256)]
            for each in chosen:
                each.cancel()
            return bool(chosen)

    def close(self, *, grace_s: float) -> bool:
        """Cancel everything and wait; return whether all of it ended."""
        self.cancel()
        self._worker.shutdown(wait=False)
        until = time.monotonic() + grace_s
        while (order := self.running) is not None:
            if not order.wait(max(0.0, until - time.monotonic())):
                return False
        return True

    def _found(self, key: Key, plan: RoundPlan) -> Order | None:
        known = [*self._waiting, *([self._kept] if self._kept else [])]
        same = [each for each in known if each.key == key and (each.answer or not each.cancelled)]
        if same:
            return same[0]
        if len(self._waiting) >= _MOST_WAITING or not all(_gives_way(each, key, plan) for each in self._waiting):
            raise Refused("site_busy")
        return None

    def _run(self, order: Order) -> None:
        started = time.perf_counter()
        self._began()
        order.run(self._stopped)
        with self._lock:
            self._waiting.remove(order)
            order.drop_if_cancelled()
            if order.answer is not None:
                self._kept = order
        self._ended(order, time.perf_counter() - started)
        order.finish()


def _gives_way(running: Order, key: Key, plan: RoundPlan) -> bool:
    """Whether an order may wait for the one that runs: as the same plan against another head, or as a later round."""
    later = plan.job_id == running.plan.job_id and plan.round > running.plan.round
    return later or key.plan_sha256 == running.key.plan_sha256
