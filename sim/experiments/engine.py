"""Doing many cases: side by side, in order, until done or out of time; what is finished stays finished."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context

from multimix.errors import InputError
from sim.experiments.case import AnyCase, case_name, needs
from sim.experiments.record import CaseRecord
from sim.experiments.work import Place, do


@dataclass
class Done:
    """How far an experiment is."""

    records: dict[str, CaseRecord] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # case to reason
    left: list[str] = field(default_factory=list)  # not begun before time was up


def run_cases(
    cases: Sequence[AnyCase],
    place: Place,
    *,
    workers: int,
    minutes: float | None = None,
    told: Callable[[CaseRecord, Done], None] | None = None,
) -> Done:
    """Do what is not done yet, `workers` cases at a time with one torch thread each; begin none after `minutes`.

    An interrupt (KeyboardInterrupt) loses the cases under way; a federation goes on after its last round.
    """
    done, waiting = look_up(cases, place)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    pool = _pool(min(workers, max(1, len(waiting))))
    under_way: dict[Future[CaseRecord], AnyCase] = {}
    try:
        while waiting or under_way:
            if until is not None and time.monotonic() > until:
                done.left, waiting = [case_name(case) for case in waiting], []
            while len(under_way) < workers and (case := _next(waiting, done)) is not None:
                waiting.remove(case)
                under_way[pool.submit(do, case, place)] = case
            if not under_way:  # what is left, if anything, needs a case that failed
                done.left += [case_name(case) for case in waiting]
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                _take_in(under_way.pop(future), future, done, told)
    except BaseException:  # an interrupt, or a defect in a worker: end the others too
        _stop(pool)
        raise
    pool.shutdown()
    return done


def _next(waiting: Sequence[AnyCase], done: Done) -> AnyCase | None:
    """Return the first case that has all it needs."""
    return next((case for case in waiting if all(name in done.records for name in needs(case))), None)


def look_up(cases: Iterable[AnyCase], place: Place) -> tuple[Done, list[AnyCase]]:
    """Return what is finished already, and the cases that are not, in their order; decodes the images."""
    done, waiting = Done(), list[AnyCase]()
    for case in cases:
        record = place.finished(case)
        if record is None:
            waiting.append(case)
        else:
            done.records[case_name(case)] = record
    return done, waiting


def _take_in(
    case: AnyCase, future: Future[CaseRecord], done: Done, told: Callable[[CaseRecord, Done], None] | None
) -> None:
    try:
        record = future.result()
    except InputError as error:
        done.failed[case_name(case)] = f"{error.reason}: {error}"
        return
    done.records[case_name(case)] = record
    if told:
        told(record, done)


def _pool(workers: int) -> ProcessPoolExecutor:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End workers in the middle of their work: there is no public way."""
    processes = list((pool._processes or {}).values())  # noqa: SLF001
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
