"""The server's progress, one line an event: rounds, sites, reason codes. Never a path of a site or exception text."""

import logging
import sys

log = logging.getLogger("multimix.server")


def show_progress(*, to_stderr: bool = False) -> None:
    """Print progress lines, once, where nobody else has set up logging for them."""
    if log.handlers:
        return
    handler = logging.StreamHandler(sys.stderr if to_stderr else sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
