"""Commands of `multimix-site` that start at once and can be killed: forks of a process that has imported all they need.

Each has a session, and so a process group, of its own. Outcomes are committed every few files instead of every 64, so
that kills meet many states.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

FEW_SECONDS = 5.0
_NURSERY = """
import json, os, sys
import client.intake.run
from client.cli import app
client.intake.run.COMMIT_ITEMS = 7
for line in sys.stdin:
    arguments, said, text = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        os.dup2(reading, 0)
        sys.stdin = open(0)
        app(arguments)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """Runs one command at a time."""

    def __init__(self, folder: Path):
        """Start the process that the commands are forks of, and wait until it has imported everything."""
        self._said = folder / "said"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", _NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
        )
        self.run("--help")

    def close(self) -> None:
        self._nursery.stdin.close()
        self._nursery.wait(10)
        self._nursery.stdout.close()

    def run(self, *arguments: str, text: str = "") -> float:
        """Run a command that succeeds; return the seconds it took."""
        started = time.monotonic()
        self._start(arguments, text)
        code = self._code(120)
        assert code == 0, self._said.read_text()
        return time.monotonic() - started

    def kill(self, after_s: float, *arguments: str, text: str = "", group: bool) -> bool:
        """Kill a command, or all of its processes, after a while; whether it was still running."""
        pid = self._start(arguments, text)
        code = self._code(after_s)
        if code is None:
            (os.killpg if group else os.kill)(pid, signal.SIGKILL)
            code = self._code(FEW_SECONDS)
        assert gone(pid), "a process has outlived the command"
        assert code in {0, -signal.SIGKILL}, self._said.read_text()
        return code != 0

    def _start(self, arguments: tuple[str, ...], text: str) -> int:
        line = json.dumps([arguments, str(self._said), text])
        self._nursery.stdin.write(f"{line}\n".encode())
        return int(self._nursery.stdout.readline())

    def _code(self, within_s: float) -> int | None:
        ready, _, _ = select.select([self._nursery.stdout], [], [], within_s)
        return int(self._nursery.stdout.readline()) if ready else None


def members(session: int) -> list[str]:
    """Return the processes of a session, zombies apart; the kernel shows it of processes that hide all else."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
            found += [path.parent.name] if its == str(session) and state != "Z" else []
    return found


def gone(session: int) -> bool:
    """Wait a few seconds for the last process of a session to end; whether it did."""
    deadline = time.monotonic() + FEW_SECONDS
    while members(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not members(session)
