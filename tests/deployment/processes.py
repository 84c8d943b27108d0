"""Programs that tests run, and what they started, by the kernel's own account; nothing is found by name alone."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from multimix.processes import descendants


def those_that_are(pid: int, program: str) -> list[int]:
    """Return the descendants of a process whose command line names a program."""
    return [each for each in descendants(pid) if program in _command(each)]


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, as a power cut would."""
    doomed = [pid, *descendants(pid)]
    for each in doomed:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def wait_until(true: Callable[[], object], *, within_s: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what()}"
        time.sleep(0.1)


@dataclass
class Program:
    """A process and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, text: str, *, within_s: float = 60) -> None:
        wait_until(lambda: text in self.said, within_s=within_s, what=lambda: f"{text!r} in:\n{self.said[-3000:]}")

    def kill(self) -> None:
        """Kill it and all that it started, as a power cut would."""
        kill_tree(self.process.pid)
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end, and see that it does."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL
