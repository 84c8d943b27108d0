"""What a process started, by the kernel's own account; nothing is found by name alone."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did, the nearest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # After the name, which may hold blanks and brackets: state, then the parent.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found


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
