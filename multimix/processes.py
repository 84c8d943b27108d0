"""Programs that we start: with an environment that is stated in full, stopped by their own id, never left behind."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

STOP_S: Final = 15.0  # what a program is given to end by itself
NOT_STARTED: Final = -1
_ALWAYS: Final = ("LANG", "LC_ALL", "TZ", "TMPDIR")
_SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S, _STEADY_S = 1.0, 30.0, 60.0
_LOOK_S: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def installed(name: str) -> str:
    """Return the path of a program of the very environment that this runs in."""
    return str(Path(sys.executable).parent / name)


def environment(*, keep: Iterable[str] = (), **stated: str) -> dict[str, str]:
    """Return what a program is told: these variables, and of ours only a few harmless ones and those to keep."""
    ours = {name: os.environ[name] for name in (*_ALWAYS, *keep) if name in os.environ}
    return {**ours, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{_SYSTEM_PATH}", **stated}


def start(
    command: Sequence[str], *, env: dict[str, str], cwd: Path, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own; it is asked to end when this process dies."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log is not None else None,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509  (one call into libc, no lock of Python's)
    )


def stop(process: subprocess.Popen[bytes], *, patience_s: float = STOP_S) -> None:
    """Stop a program and what it started: its own process group, nothing else."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set, in place of what they did before."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_running(
    begin: Callable[[], subprocess.Popen[bytes] | None],
    stopped: threading.Event,
    *,
    ended: Callable[[int, float], None],
    look: Callable[[], None] = lambda: None,
    once: bool = False,
) -> int:
    """Run a program until `stopped`, again with longer pauses when it ends; return its last exit code.

    `begin` returns None where it cannot start yet. `ended` is given the exit code, -1 for a program that did not start,
    and the seconds until the next try; `look` is called five times a second while the program runs. The program is
    stopped in any case.
    """
    pause_s, code = _SHORTEST_PAUSE_S, 0
    while not stopped.is_set():
        began, process = time.monotonic(), begin()
        code = NOT_STARTED if process is None else _watched(process, stopped, look)
        if stopped.is_set() or once:
            break
        steady = time.monotonic() - began > _STEADY_S
        pause_s = _SHORTEST_PAUSE_S if steady else min(2 * pause_s, _LONGEST_PAUSE_S)
        ended(code, pause_s)
        stopped.wait(pause_s)
    return code


def _watched(process: subprocess.Popen[bytes], stopped: threading.Event, look: Callable[[], None]) -> int:
    try:
        while process.poll() is None and not stopped.wait(_LOOK_S):
            look()
    finally:
        stop(process)
    return process.returncode


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def end_with_parent() -> None:
    """Ask Linux to end this process (SIGTERM) when the thread that started it ends; elsewhere do nothing."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did, the nearest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # After the name, which may hold blanks and brackets: state, then the parent.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found
