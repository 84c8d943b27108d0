"""Locks that end with the process that holds them, however it ends: one agent, one connector, one run in a folder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from multimix.errors import InputError

_LOOK_S: Final = 0.2


@contextmanager
def held(file: Path, *, busy: InputError, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file, made where it is missing; raise `busy` where another process keeps it for `wait_s`.

    Raises:
        OSError: the file cannot be made, or is a link: whose it is would be another's choice.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + wait_s
        while not _taken(descriptor):
            if time.monotonic() >= until:
                raise busy
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
