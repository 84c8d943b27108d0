"""The agent's activity log: who asked for what, when, and what came of it. Codes only, no patient; size-bounded.

It is for the hospital's eyes. The ledger is what counts: this file can be lost without harm.
"""

import logging
import os
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, ValidationError

from multimix.config import Frozen

log = logging.getLogger("multimix.agent")

FILE: Final = "activity.jsonl"
OLDER: Final = "activity.jsonl.1"
_MOST_BYTES: Final = 4 << 20  # then it becomes the older one
_SHA256: Final = re.compile(r"[0-9a-f]{64}")

Outcome = Literal["answered", "sent_again", "refused", "cancelled"]


class Activity(Frozen):
    """One line. Job, round and plan are of plans with a valid signature only, so nobody else writes words in here."""

    time: AwareDatetime
    kind: Literal["describe", "train", "evaluate"]
    job: str = ""
    round: int | None = None
    plan_sha256: str = ""
    bundle_claimed: str = ""  # the hash that the app says it has
    outcome: Outcome
    reason: str = ""
    seconds: float | None = None


class ActivityLog:
    """Appends lines; a line that cannot be written is no reason to stop."""

    def __init__(self, site: Path, *, most_bytes: int = _MOST_BYTES) -> None:
        self._site, self._most_bytes, self._lock = site, most_bytes, threading.Lock()

    def append(self, activity: Activity) -> None:
        """Write a line, and begin a new file where this one is full."""
        line = (activity.model_dump_json(exclude_defaults=True) + "\n").encode()
        with self._lock:
            try:
                self._rotate(len(line))
                descriptor = os.open(self._site / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.write(descriptor, line)
                finally:
                    os.close(descriptor)
            except OSError as error:
                log.warning("activity_not_written: %s", type(error).__name__)

    def _rotate(self, more_bytes: int) -> None:
        file = self._site / FILE
        if file.exists() and file.stat().st_size + more_bytes > self._most_bytes:
            file.replace(self._site / OLDER)


def claimed(bundle_sha256: str) -> str:
    """Return a claimed hash as it may stand in the log."""
    return bundle_sha256 if _SHA256.fullmatch(bundle_sha256) else ("malformed" if bundle_sha256 else "")


def now() -> datetime:
    """Return the time of a line."""
    return datetime.now(UTC).replace(microsecond=0)


def read_activity(site: Path) -> list[Activity]:
    """Return the lines, oldest first, without those cut by a crash."""
    found = []
    for name in (OLDER, FILE):
        raw = (site / name).read_bytes() if (site / name).exists() else b""
        for line in raw.splitlines():
            try:
                found.append(Activity.model_validate_json(line))
            except ValidationError:
                continue
    return found


def waiting_jobs(lines: list[Activity], approved: tuple[str, ...]) -> list[str]:
    """Return the jobs that were refused because nobody approved them, and still nobody has; in name order."""
    return sorted({line.job for line in lines if line.reason == "job_not_approved"} - set(approved))
