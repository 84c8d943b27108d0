"""Is this machine's clock right? Certificates, ledgers and deadlines all depend on it."""

import ctypes
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from client.preflight.lines import Line

BEHIND_WARN_S, BEHIND_FAIL_S = 30, 300
AHEAD_WARN_S, AHEAD_FAIL_S = (
    2,
    6,
)  # the server takes no signature from more than 5 s in its future, or 305 s in its past
_EARLIEST = 1_767_225_600.0  # 2026-01-01 UTC in seconds since 1970: this program did not exist before
_SYNCHRONISED_BELOW_MICROSECONDS = 16_000_000  # as systemd: the kernel's error estimate grows to this when unattended
_FIX = "Switch on time synchronisation: `timedatectl set-ntp true`, or chrony with the hospital's time server."
_OR_THEIRS = "If this machine's clock is right, the server's is wrong: tell the coordinator."


class _Timex(ctypes.Structure):
    """The head of Linux's `struct timex` (adjtimex(2)), with room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),  # 0: read only
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("maximum_error", ctypes.c_long),  # microseconds
        ("rest", ctypes.c_char * 512),
    )


def clock(
    *, now: float | None = None, installed: float | None = None, maximum_error_microseconds: int | None = None
) -> list[Line]:
    """Judge the clock without a network: is it plausible, and does anything keep it right?

    Args:
        now: Seconds since 1970; the machine's clock unless given.
        installed: When the newest package was installed, same unit; read from the environment unless given.
        maximum_error_microseconds: The kernel's estimate; asked for unless given.
    """
    now = time.time() if now is None else now
    installed = newest_install() if installed is None else installed
    if maximum_error_microseconds is None:
        maximum_error_microseconds = read_maximum_error()
    return [_plausible(now, installed), _synchronised(maximum_error_microseconds)]


def clock_against(server_date: str, *, now: float | None = None) -> Line:
    """Compare the clock with an HTTP Date header, which has whole seconds.

    It fails where Flower's SuperLink would refuse every message of this machine (`clock_wrong`): each is signed with
    its time.

    Args:
        server_date: Of the server's answer.
        now: Seconds since 1970 when it was asked, so that a slow answer never makes the clock seem ahead.
    """
    now = time.time() if now is None else now
    try:
        parsed = parsedate_to_datetime(server_date)
        server = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return Line("clock", "WARN", "The server's time could not be understood.", "Tell the coordinator.")
    difference_s = now - server
    direction = "ahead of" if difference_s > 0 else "behind"
    found = f"This machine's clock is {abs(difference_s):.0f} s {direction} the server's"
    if -BEHIND_WARN_S <= difference_s <= AHEAD_WARN_S:
        return Line("clock", "PASS", f"{found}.")
    if -BEHIND_FAIL_S <= difference_s <= AHEAD_FAIL_S:
        return Line("clock", "WARN", f"{found}.", _FIX)
    found = f"{found}: {_time(now)} here, {_time(server)} there (clock_wrong)."
    return Line("clock", "FAIL", found, f"{_FIX} {_OR_THEIRS}")


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def newest_install(folders: Iterable[str] | None = None) -> float:
    """Return when the newest installed package's metadata was written, in seconds since 1970; 0 when none is found."""
    times = [0.0]
    for folder in sys.path if folders is None else folders:
        for file in Path(folder).glob("*.dist-info/METADATA"):
            try:
                times.append(file.stat().st_mtime)
            except OSError:  # being replaced by an installation now
                continue
    return max(times)


def read_maximum_error() -> int | None:
    """Return the kernel's largest error of the clock in microseconds, or None where it cannot be asked."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (AttributeError, OSError, TypeError):  # not Linux
        return None
    state = _Timex(modes=0)
    return state.maximum_error if adjtimex(ctypes.byref(state)) >= 0 else None


def _plausible(now: float, installed: float) -> Line:
    if now < _EARLIEST:
        return Line("clock", "FAIL", "The clock shows a time before this program was made.", _FIX)
    if now < installed - BEHIND_FAIL_S:
        return Line("clock", "FAIL", "The clock shows a time before the newest package was installed.", _FIX)
    return Line("clock", "PASS", "The clock shows a plausible time.")


def _synchronised(maximum_error_microseconds: int | None) -> Line:
    if maximum_error_microseconds is None:
        return Line("clock", "WARN", "Whether the clock is synchronised could not be read.", _FIX)
    if maximum_error_microseconds < _SYNCHRONISED_BELOW_MICROSECONDS:
        return Line("clock", "PASS", "The clock is synchronised.")
    return Line("clock", "WARN", "Nothing synchronises the clock of this machine.", _FIX)
