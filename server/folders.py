"""Where a run without a folder of its own goes."""

import secrets
from datetime import UTC, datetime
from pathlib import Path


def new_run_folder() -> Path:
    """Return a folder under runs/ that no other run has."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{stamp}-{secrets.token_hex(2)}"
