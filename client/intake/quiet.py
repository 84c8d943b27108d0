"""Silences other people's packages: their log lines and warnings quote addresses, UIDs and values of tags."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence(*packages: str) -> None:
    """Switch off every logger of these packages for the life of the process, whatever level is set later."""
    below = tuple(f"{package}." for package in packages)
    known = [name for name in logging.root.manager.loggerDict if name.startswith(below)]
    for name in (*packages, *known):
        logger = logging.getLogger(name)
        logger.disabled = True
        logger.setLevel(logging.CRITICAL + 1)  # inherited by children that appear later


@contextmanager
def no_warnings_nor_tracebacks() -> Iterator[None]:
    """Keep warnings, and tracebacks of threads that die, off the terminal: both quote what a peer sent."""
    dying = threading.excepthook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threading.excepthook = lambda _: None
        try:
            yield
        finally:
            threading.excepthook = dying
