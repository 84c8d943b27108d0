"""The agent's activity log: who asked for what, when, and what came of it. Codes only, no patient; size-bounded.

It is for the hospital's eyes. The ledger is what counts: this file can be lost without harm.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
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
_REPEATS_S: Final = 60.0  # one line in so many seconds of calls that are alike
_MOST_ALIKE: Final = 256  # kinds of them that are told apart

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
    repeats: int = 0  # calls like this one that have no line of their own


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


class Repeats:
    """Counts calls that are alike instead of writing each, so that no flood of them rolls the log away.

    All refusals of calls without a signed plan are alike, whatever their reason, and so are all cards given. Of signed
    plans those are that end the same way. What a plan was trained or evaluated for has always a line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._alike: dict[tuple[str, ...], tuple[float, int, Activity]] = {}  # the last line's time, counted since

    def admit(self, activity: Activity) -> Activity | None:
        """Return the line to write, with what was counted before it; None where this call is counted only."""
        if activity.plan_sha256 and activity.outcome == "answered":
            return activity
        signed = (activity.plan_sha256, activity.kind, activity.reason) if activity.plan_sha256 else ()
        key = (activity.outcome, *signed)
        with self._lock:
            last, counted, _ = self._alike.get(key, (-_REPEATS_S, 0, activity))
            if self._clock() - last < _REPEATS_S:
                self._alike[key] = (last, counted + 1, activity)
                return None
            self._alike.pop(key, None)
            self._alike[key] = (self._clock(), 0, activity)
            if len(self._alike) > _MOST_ALIKE:
                del self._alike[next(iter(self._alike))]
        return activity.model_copy(update={"repeats": counted})

    def rest(self) -> list[Activity]:
        """Return lines for what was counted and has none yet, and forget it."""
        with self._lock:
            alike, self._alike = self._alike, {}
        return [each.model_copy(update={"repeats": n - 1}) for _, n, each in alike.values() if n]


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
