"""A machine whose clock is wrong: in a mount namespace every Python of this environment believes another time.

libfaketime stands before the C library's clock. It is put there by a program in the interpreter's place and not by the
environment, because our programs state theirs in full. The monotonic clock stays right: that of no machine jumps. With
that, libfaketime 0.9.10 refuses every absolute sleep, so Python's is put on another call of the system.
"""

import shutil
import subprocess
import sys
from pathlib import Path

_LIBRARY = "/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1"
_INTERPRETER = Path(sys.executable).resolve()
_WRAPPER = """#!/bin/bash
export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={offset} FAKETIME_CACHE_DURATION=1
export FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1 PYTHONPATH={folder}
exec -a "$0" {interpreter} "$@"
"""
_SLEEP = """import select, time
time.sleep = lambda seconds: select.select((), (), (), seconds) and None
"""
_ENTER = 'mount --bind "$1" "$2" && mount --bind "$3" "$1" && shift 3 && exec "$@"'


def unavailable() -> str | None:
    """Return why no clock can be wrong here; None where it can."""
    if library() is None:
        return "no libfaketime (apt install faketime)"
    if not shutil.which("bash"):
        return "no bash"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return "mount namespaces are not permitted here" if tried.returncode else None


def library() -> Path | None:
    """Return libfaketime, where it is installed."""
    found = (Path(_LIBRARY.format(machine)) for machine in ("x86_64", "aarch64"))
    return next((path for path in found if path.exists()), None)


class MachineClock:
    """The clock of a machine; `set` moves it while programs run, who see it within a second or two."""

    def __init__(self, folder: Path, offset: str = "+0") -> None:
        """Make it, so much off: "+2y", "-1h", "+20s"."""
        folder.mkdir()
        self._offset, self._interpreter, self._wrapper = folder / "offset", folder / "python", folder / "wrapper"
        self._interpreter.touch()  # a place for the interpreter, whose own the wrapper takes
        (folder / "sitecustomize.py").write_text(_SLEEP)
        places = {"folder": folder, "offset": self._offset, "interpreter": self._interpreter}
        self._wrapper.write_text(_WRAPPER.format(library=library(), **places))
        self._wrapper.chmod(0o755)
        self.set(offset)

    def set(self, offset: str) -> None:
        self._offset.write_text(offset)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs on that machine; the process id is the command's."""
        places = map(str, (_INTERPRETER, self._interpreter, self._wrapper))
        return ["unshare", "--mount", "sh", "-c", _ENTER, "sh", *places, *arguments]
