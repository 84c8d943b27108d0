"""What an audit of a ledger found: records for the report, each with a reason code and the entry concerned.

A violation is something that the software never writes: the ledger was changed, or its trainer lied. A notice is what
an honest ledger may hold and a reader must not miss.
"""

from typing import Literal

from multimix.config import Frozen

Severity = Literal["violation", "notice"]


class Finding(Frozen):
    """One fault, or one thing to know; `detail` is in our own words and quotes no text of the ledger."""

    reason: str
    entry: int | None  # the entry concerned, from 0, or the first of them; None: the ledger as a whole
    detail: str
    severity: Severity = "violation"


def notice(reason: str, entry: int | None, detail: str) -> Finding:
    """Return what is no fault."""
    return Finding(reason=reason, entry=entry, detail=detail, severity="notice")


def violation(reason: str, entry: int | None, detail: str) -> Finding:
    """Return a fault."""
    return Finding(reason=reason, entry=entry, detail=detail)
