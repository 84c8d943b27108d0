"""The file of the server's heads, as text: every countersignature it gave, and the digests of the entries between.

The server appends to it (`server.heads`); an auditor reads it, and holds a site's ledger against it. Each line is
hashed together with the line before it. Nothing shows that whole lines were cut off at its end: the sites' own
countersignatures show that.
"""

from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import AwareDatetime, Field

from multimix.config import Frozen
from multimix.contract.messages import Name, canonical_json, sha256_text
from multimix.contract.privacy import EMPTY_HEAD, Countersignature, LedgerHead, Sha256, chained
from multimix.errors import InputError

FILE: Final = "heads.jsonl"


class HeadRecord(Frozen):
    """One line: a countersignature, when and for which round it was given, and how the ledger got there."""

    time: AwareDatetime
    job_id: Name
    round: Annotated[int, Field(ge=0)]
    digests: tuple[Sha256, ...]  # of the entries since the longest head before; empty where the head is not longer
    countersignature: Countersignature


class Line(Frozen):
    """A record, bound to the lines before it."""

    record: HeadRecord
    sha256: Sha256  # of the line before (64 zeros at the beginning) and this record


@dataclass
class SiteHeads:
    """What is known of one site's ledger: its key, its head at every length, the countersignatures."""

    public_key: str
    digests: list[str] = field(default_factory=list)  # of each entry
    heads: list[str] = field(default_factory=lambda: [EMPTY_HEAD])  # by length
    records: list[HeadRecord] = field(default_factory=list)

    def has(self, head: LedgerHead) -> bool:
        """Whether the ledger once ended at this head."""
        return head.length < len(self.heads) and self.heads[head.length] == head.sha256

    def add(self, record: HeadRecord) -> None:
        """Raise ValueError where the record does not continue this ledger."""
        for digest in record.digests:
            self.digests.append(digest)
            self.heads.append(chained(self.heads[-1], (digest,)))
        signature = record.countersignature
        if signature.public_key != self.public_key or not self.has(signature.head):
            raise ValueError("no continuation")
        self.records.append(record)


@dataclass
class HeadLines:
    """The lines of a file so far, taken in one after another."""

    sha256: str = EMPTY_HEAD  # of the last line
    sites: dict[str, SiteHeads] = field(default_factory=dict)
    records: list[HeadRecord] = field(default_factory=list)  # of all sites, oldest first

    def next_line(self, record: HeadRecord) -> Line:
        """Return the line that a record makes, were it appended."""
        return Line(record=record, sha256=sha256_text(self.sha256 + canonical_json(record)))

    def take_in(self, text: bytes) -> None:
        """Read one more line; ValueError where it is altered, or lines before it are missing or moved."""
        line = Line.model_validate_json(text)
        if line != self.next_line(line.record):
            raise ValueError("hash")
        signature = line.record.countersignature
        self.sites.setdefault(signature.site, SiteHeads(signature.public_key)).add(line.record)
        self.records.append(line.record)
        self.sha256 = line.sha256


def head_records(raw: bytes) -> tuple[HeadRecord, ...]:
    """Return the countersignatures of all sites in the bytes of a file, oldest first.

    A last line without its end is left out: nobody was given that countersignature. The coordinator's signatures are
    not checked: see `Countersignature.by`.

    Raises:
        InputError: `heads_damaged` where a line was altered, removed or moved.
    """
    lines = HeadLines()
    for number, text in enumerate(raw[: raw.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            lines.take_in(text)
        except ValueError:  # pydantic's too
            raise InputError(
                "heads_damaged",
                f"The server's heads are damaged at line {number}: ask the coordinator for a copy of {FILE} in which "
                "nothing was altered.",
            ) from None
    return tuple(lines.records)
