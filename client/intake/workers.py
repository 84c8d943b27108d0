"""Decoding in processes of their own, each file within a time and memory limit.

A decoder that crashes, hangs or asks for too much memory costs its file, never the intake. A worker has no core
dumps (they hold patients), no standard streams (C libraries print there) and one thread.
"""

import ctypes
import fcntl
import multiprocessing
import os
import resource
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from pebble import CONSTS, ProcessExpired, ProcessPool

from client.intake.examine import Examined, Item, Rules, aside, examine

AHEAD: Final = 4  # items in flight for each worker
MEMORY_OVER_BYTES: Final = 4  # bytes sent to a worker are there twice, beside the worker itself
TERMINATE_S: Final = 0.1  # between asking a worker to end and ending it: it has nothing to save
_STOP_S: Final = 5.0
_KILL_S: Final = 5.0  # until pebble has ended a worker that does not heed
_PR_SET_DUMPABLE: Final = 4

_rules: list[Rules] = []


@dataclass(frozen=True)
class Limits:
    """Of one worker process."""

    workers: int
    seconds_per_file: float = 20.0
    memory_mib: int = 2048


def _start(rules: Rules, memory_mib: int) -> None:
    """Limit the process and keep what all its items need."""
    from multimix.data.dicom import silence  # noqa: PLC0415  (in the worker only)

    _end_with_the_intake()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # crash handlers that are piped to ignore the limit above
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    silence()
    _rules[:] = [rules]


def _end_with_the_intake() -> None:
    """Let SIGIO end this process when the intake is gone: a worker that hangs in a file would not notice.

    The other end of the sentinel, a pipe, is open in the intake alone. PR_SET_PDEATHSIG would be about the fork
    server, which lives as long as a worker does.
    """
    intake = multiprocessing.parent_process()
    if intake is None:
        return
    fcntl.fcntl(intake.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(intake.sentinel, fcntl.F_SETFL, os.O_ASYNC)
    if not intake.is_alive():
        os._exit(1)


def _work(item: Item) -> Examined:
    try:
        return examine(item, _rules[0])
    except MemoryError:
        return aside("memory_limit")
    except BaseException:  # noqa: BLE001  (its text may quote the file; a panic in Rust is no Exception)
        return aside("examination_failed")


class Workers:
    """A pool that examines items in their order."""

    def __init__(self, rules: Rules, limits: Limits) -> None:
        """Prepare; processes start with the first item."""
        self._rules, self._limits = rules, limits
        self._pool: ProcessPool | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all processes, whose work is lost if the block failed; they end with this one at the latest."""
        if self._pool is None:
            return
        if kind is None:
            self._pool.close()
            self._pool.join()
            return
        # An interrupt can leave a lock of the pool taken; nobody who pressed Ctrl-C waits for that.
        _stop(self._pool).join(_STOP_S)

    def examined(self, items: Iterable[Item]) -> Iterator[tuple[Item, Examined]]:
        """Yield each item with its outcome, in the order of the items."""
        waiting: deque[tuple[Item, Callable[[], Examined]]] = deque()
        for item in items:
            waiting.append((item, self._scheduled(item)))
            if len(waiting) >= AHEAD * self._limits.workers:
                first, result = waiting.popleft()
                yield first, _outcome(result)
        while waiting:
            first, result = waiting.popleft()
            yield first, _outcome(result)

    def _scheduled(self, item: Item) -> Callable[[], Examined]:
        if isinstance(item.content, bytes) and len(item.content) * MEMORY_OVER_BYTES > self._limits.memory_mib << 20:
            return lambda: aside("memory_limit")  # a worker that cannot even receive it would break the pool
        limit_s = self._limits.seconds_per_file
        try:
            future = self._started().schedule(_work, args=(item,), timeout=limit_s)
        except (RuntimeError, BrokenProcessPool):  # a worker died while it had nothing to do: the pool is lost
            if self._pool is not None:
                _stop(self._pool)
            self._pool = None
            future = self._started().schedule(_work, args=(item,), timeout=limit_s)
        longest_s = (AHEAD + 1) * (limit_s + _KILL_S)  # those before it in the queue, each at its limit
        return lambda: future.result(longest_s)

    def _started(self) -> ProcessPool:
        if self._pool is None:
            # Pools of this process only: the fork server is clean of torch and of the parent's threads.
            for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
                os.environ.setdefault(name, "1")  # each thread of numpy's would take 40 MiB of a worker's memory
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["client.intake.examine"])
            CONSTS.term_timeout = TERMINATE_S
            self._pool = ProcessPool(
                max_workers=self._limits.workers,
                initializer=_start,
                initargs=(self._rules, self._limits.memory_mib),
                context=context,
            )
        return self._pool


def _stop(pool: ProcessPool) -> threading.Thread:
    """Begin to stop a pool that may be stuck; its processes end with this one at the latest."""

    def stop() -> None:
        pool.stop()
        pool.join()

    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    return stopping


def _outcome(result: Callable[[], Examined]) -> Examined:
    try:
        return result()
    except FutureTimeoutError:
        return aside("time_limit")
    except (ProcessExpired, BrokenProcessPool, CancelledError):
        return aside("decoder_crashed")
