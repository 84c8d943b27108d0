"""Locks that end with the process that holds them, however it ends: one run in a folder, one start at a time."""

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
def held(file: Path, *, wait_s: float, busy: InputError) -> Iterator[None]:
    """Hold the lock of a file, made where it is missing; raise `busy` where another process keeps it for `wait_s`."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
