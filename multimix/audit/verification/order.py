"""Are all entries there, each once, in order, and chained to those before? And is the first one the ledger's own?

An entry's signature covers its number, its time and the hash over all entries before it. After a fault the walk goes
on from what a signed entry says of itself, so that one deletion is one finding and not one for each entry after it.
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from multimix.audit.verification.findings import Finding, violation
from multimix.audit.verification.lines import Row
from multimix.contract.privacy import EMPTY_HEAD, chained
from multimix.privacy.entries import Entry, Genesis


@dataclass
class _Walk:
    """What the next line has to be."""

    number: int = 0
    head: str | None = EMPTY_HEAD  # None: not known, after a line that cannot be read
    time: datetime | None = None
    seen: dict[int, str] = field(default_factory=dict)  # digests by number

    def step(self, row: Row) -> Iterator[Finding]:
        """Yield what is wrong with the place of one line."""
        entry, digest = row.entry, row.digest
        if entry is None or digest is None:
            self.number += 1  # it stands for the entry that should be here
            self.head = None
            return
        claimed = entry.sequence if row.signed else self.number  # of an unsigned entry nothing is believed
        if claimed < self.number:
            yield self._behind(claimed, digest)
            return
        yield from self._ahead(entry, claimed)
        self.seen[claimed] = digest
        self.number, self.time = claimed + 1, entry.time
        self.head = chained(entry.previous, (digest,))

    def _behind(self, number: int, digest: str) -> Finding:
        earlier = self.seen.get(number)
        if earlier is None:
            return violation("entry_moved", number, f"stands behind entry {self.number - 1}")
        if earlier == digest:
            return violation("entry_repeated", number, "stands here a second time")
        return violation("entry_forked", number, "two different signed entries have this number")

    def _ahead(self, entry: Entry, claimed: int) -> Iterator[Finding]:
        if claimed > self.number:
            absent = f"entries {self.number} to {claimed - 1} are" if claimed > self.number + 1 else "it is"
            yield violation("entry_missing", self.number, f"{absent} not in place: entry {claimed} follows")
        elif entry.sequence != claimed:
            yield violation("entry_misnumbered", claimed, f"calls itself entry {entry.sequence}")
        elif self.head not in (None, entry.previous):
            yield violation("chain_broken", claimed, "was made after other entries than those before it")
        if self.time is not None and entry.time < self.time:
            seconds = (self.time - entry.time).total_seconds()
            yield violation("clock_back", claimed, f"{seconds:.0f} s earlier than the entry before it")


def order_findings(rows: list[Row]) -> Iterator[Finding]:
    """Yield missing, moved, repeated, forked and re-chained entries, and a clock that goes back."""
    walk = _Walk()
    for row in rows:
        yield from walk.step(row)


def genesis_of(rows: list[Row]) -> Genesis | None:
    """Return the first entry that says whose ledger it is."""
    bodies = (row.entry.body for row in rows if row.entry)
    return next((body for body in bodies if isinstance(body, Genesis)), None)


def genesis_findings(rows: list[Row], key: str) -> Iterator[Finding]:
    """Yield what is wrong with the first entry, for an auditor who was given this public key by other means."""
    if not rows:
        yield violation("ledger_empty", 0, "no whole line: every ledger has a first entry")
        return
    if not (rows[0].entry and isinstance(rows[0].entry.body, Genesis)):
        yield violation("genesis_missing", 0, "the first line does not say whose ledger it is")
    first = genesis_of(rows)
    if first and not same_key(first.public_key, key):
        yield violation(
            "genesis_other_key", 0, "names another public key: another ledger, or this one written anew with that key"
        )
    for row in rows[1:]:
        if row.entry and isinstance(row.entry.body, Genesis):
            yield violation("genesis_again", row.number, "only the first entry says whose ledger it is")


def same_key(one: str, other: str) -> bool:
    """Whether two base64 texts are the same key; never if one is none."""
    try:
        return base64.b64decode(one, validate=True) == base64.b64decode(other, validate=True)
    except ValueError:
        return False
