"""The lines of a ledger as text: how they are sealed, chained and verified. No files, no clock.

A line is `{"document": ..., "signature": ...}`: the canonical JSON of an `Entry` and the ledger's Ed25519 signature of
that text. The digest of a line is the hash of both, the head after it the hash of the head before it and the digest,
and every entry names the head before it. So the last signature authenticates all lines before it: its text holds the
head over them, and no other lines lead to that head. Earlier signatures are a second proof of the same, for an officer
who wants each of them checked.
"""

import base64
import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from multimix.contract.messages import canonical_json
from multimix.contract.privacy import EMPTY_HEAD, LedgerHead, chained
from multimix.contract.signing import public_key
from multimix.errors import Refused
from multimix.privacy.entries import Entry, Genesis

_quoted: Final = json.encoder.encode_basestring_ascii  # a text as JSON, ten thousand times


@dataclass(frozen=True)
class Sealed:
    """The canonical text of an entry and its signature (base64)."""

    document: str
    signature: str

    @property
    def line(self) -> str:
        """As it stands in the file, without the end of line."""
        return f'{{"document":{_quoted(self.document)},"signature":{_quoted(self.signature)}}}'

    @property
    def digest(self) -> str:
        """What the chain is made of, hex."""
        return hashlib.sha256(f"{self.document}\n{self.signature}".encode()).hexdigest()

    def by(self, key: Ed25519PublicKey) -> bool:
        """Whether this key signed it, in the one spelling that the signature has."""
        try:
            signature = base64.b64decode(self.signature, validate=True)
            key.verify(signature, self.document.encode())
        except (InvalidSignature, ValueError):
            return False
        return base64.b64encode(signature).decode() == self.signature


@dataclass(frozen=True)
class Chain:
    """Verified entries, the digest of each, and the head at every length (one more than entries)."""

    entries: tuple[Entry, ...] = ()
    digests: tuple[str, ...] = ()
    heads: tuple[str, ...] = (EMPTY_HEAD,)
    size: int = 0  # bytes of the file that they fill

    @property
    def head(self) -> LedgerHead:
        """Of the whole chain."""
        return LedgerHead(length=len(self.entries), sha256=self.heads[-1])

    @property
    def genesis(self) -> Genesis:
        """Whose ledger it is; Refused `ledger_damaged` where the first entry does not say."""
        body = self.entries[0].body if self.entries else None
        if not isinstance(body, Genesis):
            raise _damaged(0)
        return body

    def has(self, head: LedgerHead) -> bool:
        """Whether the chain once ended at this head."""
        return head.length < len(self.heads) and self.heads[head.length] == head.sha256

    def grown(self, sealed: Sealed) -> "Chain":
        """Return the chain with one more entry; Refused `ledger_damaged` where it does not follow."""
        entry = _following(sealed, len(self.entries), self.heads[-1])
        return Chain(
            entries=(*self.entries, entry),
            digests=(*self.digests, sealed.digest),
            heads=(*self.heads, chained(self.heads[-1], (sealed.digest,))),
            size=self.size + len(sealed.line) + 1,
        )


def seal(entry: Entry, key: Ed25519PrivateKey) -> Sealed:
    """Sign an entry."""
    document = canonical_json(entry)
    return Sealed(document, base64.b64encode(key.sign(document.encode())).decode())


def verified_chain(raw: bytes, *, every_signature: bool = False) -> Chain:
    """Return the chain in the bytes of a ledger; what follows the last end of line is not looked at.

    Raises:
        Refused: `ledger_damaged` and the number of the first entry that is edited, moved, missing or unsigned.
    """
    size = raw.rfind(b"\n") + 1
    lines = raw[:size].split(b"\n")[:-1]
    with _no_collection():
        sealed = [_unsealed(line, number) for number, line in enumerate(lines)]
        chain = _chain_of(sealed, size)
    _check_signatures(chain, sealed, every=every_signature)
    return chain


def _chain_of(all_sealed: list[Sealed], size: int) -> Chain:
    entries: list[Entry] = []
    digests: list[str] = []
    heads = [EMPTY_HEAD]
    for number, sealed in enumerate(all_sealed):
        entry = _following(sealed, number, heads[-1])
        if entries and entry.time < entries[-1].time:
            raise _damaged(number)
        entries.append(entry)
        digests.append(sealed.digest)
        heads.append(chained(heads[-1], digests[-1:]))
    return Chain(tuple(entries), tuple(digests), tuple(heads), size)


def _unsealed(line: bytes, number: int) -> Sealed:
    """Only the one spelling of a line is believed, so that no edit goes unnoticed."""
    try:
        text = line.decode("ascii")
        fields = json.loads(text)
        sealed = Sealed(fields["document"], fields["signature"])
        spelled_so = sealed.line == text
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(number) from None
    if not (spelled_so and isinstance(sealed.document, str) and isinstance(sealed.signature, str)):
        raise _damaged(number)
    return sealed


def _following(sealed: Sealed, number: int, head: str) -> Entry:
    try:
        entry = Entry.model_validate_json(sealed.document)
    except ValidationError:
        raise _damaged(number) from None
    if entry.sequence != number or entry.previous != head or isinstance(entry.body, Genesis) != (number == 0):
        raise _damaged(number)
    return entry


def _check_signatures(chain: Chain, sealed: list[Sealed], *, every: bool) -> None:
    try:
        key = public_key(chain.genesis.public_key)
    except ValueError:
        raise _damaged(0) from None
    for number in range(0 if every else len(sealed) - 1, len(sealed)):
        if not sealed[number].by(key):
            raise _damaged(number)


def _damaged(number: int) -> Refused:
    return Refused("ledger_damaged", f"entry {number}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector: ten thousand entries make no garbage, and looking for it doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
