"""The lines of a ledger, read one by one whatever is wrong with the others.

`multimix.privacy.chain` stops at the first fault, because nothing may be built on a damaged ledger. An auditor wants
all of them: a line that cannot be read is passed over, and the next is read in its own right.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from multimix.audit.verification.findings import Finding, notice, violation
from multimix.audit.verification.signatures import checking
from multimix.privacy.chain import Sealed
from multimix.privacy.entries import Entry

_BEGINNING: Final = '{"document":"'  # of every line


@dataclass(frozen=True)
class Row:
    """One line: what could be read of it, and whether the ledger's key signed it."""

    number: int  # its place in the file, from 0
    digest: str | None = None  # None: unreadable
    entry: Entry | None = None
    signed: bool = False
    fault: Finding | None = None  # of its form


def rows_of(raw: bytes, key: Ed25519PublicKey) -> list[Row]:
    """Read every whole line and check every signature."""
    lines = raw[: raw.rfind(b"\n") + 1].split(b"\n")[:-1]
    all_sealed = [_unsealed(line) for line in lines]
    with checking(all_sealed, key) as signatures:
        read = [_read(*each) for each in zip(all_sealed, lines, range(len(lines)), strict=True)]
        signed = signatures()
    return [
        Row(number, sealed.digest if sealed else None, entry, fits, fault)
        for number, (sealed, (entry, fault), fits) in enumerate(zip(all_sealed, read, signed, strict=True))
    ]


def form_findings(rows: list[Row]) -> Iterator[Finding]:
    """Yield the faults of lines and signatures; neighbours with wrong signatures are one finding."""
    yield from (row.fault for row in rows if row.fault)
    unsigned = [row.number for row in rows if row.digest is not None and not row.signed]
    for first, last in _runs(unsigned):
        through = f" ({first} to {last})" if last > first else ""
        yield violation("signature_wrong", first, f"not signed with the ledger's key, or changed since{through}")


def tail_findings(raw: bytes) -> Iterator[Finding]:
    """Yield what to say of a last line without its end: a crash leaves the beginning of a line, and nothing else."""
    tail = raw[raw.rfind(b"\n") + 1 :]
    if not tail:
        return
    number = raw.count(b"\n")
    if _cut(tail):
        yield notice(
            "torn_tail",
            number,
            "the last line has no end: a crash while writing leaves this, and so does cutting the file; it does not "
            "count as entered",
        )
    else:
        yield violation("tail_damaged", number, "what follows the last whole line is not the beginning of a line")


def _read(sealed: Sealed | None, line: bytes, number: int) -> tuple[Entry | None, Finding | None]:
    """Return what a line says, and what is wrong with its form."""
    if sealed is None:
        return None, violation("line_damaged", number, "not a document and its signature")
    try:
        entry = Entry.model_validate_json(sealed.document)
    except ValidationError:
        return None, violation("entry_unknown", number, "not an entry of this format: unknown kind, field or value")
    if sealed.line.encode() != line:
        return entry, violation("line_damaged", number, "not spelled as it was written")
    if not _canonical(sealed.document):
        return entry, violation("document_not_canonical", number, "signed text that two programs may read differently")
    return entry, None


def _unsealed(line: bytes) -> Sealed | None:
    fields = _json(line)
    if not isinstance(fields, dict) or fields.keys() != {"document", "signature"}:
        return None
    document, signature = fields["document"], fields["signature"]
    if not (isinstance(document, str) and isinstance(signature, str)):
        return None
    if not (_encodable(document) and _encodable(signature)):
        return None
    return Sealed(document, signature)


def _canonical(document: str) -> bool:
    """Whether it is the one text of what it says: no key twice, sorted, without spaces."""
    return json.dumps(_json(document.encode()), sort_keys=True, separators=(",", ":")) == document


def _json(text: bytes) -> Any:
    """Return what it says; None for anything that is not JSON, or nested beyond reason."""
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError):
        return None


def _encodable(text: str) -> bool:
    """Whether it is text at all: JSON can spell half a character."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def _cut(tail: bytes) -> bool:
    """Whether a line could begin so, up to the whole of it without its end."""
    if not tail.isascii():
        return False
    text = tail.decode()
    if not (text.startswith(_BEGINNING) or _BEGINNING.startswith(text)):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return True
    return end == len(text)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of neighbours."""
    first = last = -1
    for number in numbers:
        if number != last + 1 or first < 0:
            if first >= 0:
                yield first, last
            first = number
        last = number
    if first >= 0:
        yield first, last
