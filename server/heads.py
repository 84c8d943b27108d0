"""The server's memory of the sites' ledgers: every head that it countersigned, in one file that outlives runs.

A countersignature kept by the site alone does not show a ledger whose tail was cut: the site would show an older one.
So the server keeps each of them with the digests between, and thereby knows every head that a site's ledger ever had.
An answer is refused unless its ledger runs through those heads. It need not reach the newest one: after a crash a site
sends stored bytes again, and their proof was made when its ledger was shorter.

`heads.jsonl` is only ever appended to, each line flushed to disk and hashed together with the line before it. Lines cut
off at its end leave no trace in it: the sites' own countersignatures show that. An `Extension` is not signed by the
ledger's key: that it comes from the site is the transport's word.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multimix.contract.heads import FILE, HeadLines, HeadRecord, SiteHeads
from multimix.contract.privacy import Countersignature, Extension, LedgerHead, chained, countersign
from multimix.errors import InputError, Refused

__all__ = ["FILE", "HeadRecord", "Heads", "read_history"]


def _now() -> datetime:
    return datetime.now(UTC)


class Heads:
    """The heads in a file, shared with other processes under its lock.

    Every method reads what others have appended. InputError `heads_damaged` where a line was altered or removed,
    `heads_unusable` where the file cannot be read or written; a last line that a crash cut short is removed.
    """

    def __init__(self, path: Path, *, now: Callable[[], datetime] = _now) -> None:
        self._path, self._now = path, now
        self._read = 0  # bytes taken in
        self._lines = HeadLines()
        with self._locked():
            pass

    def last(self, site: str) -> Countersignature | None:
        """Return the newest countersignature of the site's longest head; with its next order the site gets it back."""
        given = [record.countersignature for record in reversed(self.history(site))]
        return max(given, key=lambda signature: signature.head.length, default=None)

    def history(self, site: str) -> tuple[HeadRecord, ...]:
        """Return every countersignature that the site was given, oldest first."""
        with self._locked():
            known = self._lines.sites.get(site)
            return tuple(known.records) if known else ()

    def check(self, site: str, extension: Extension) -> None:
        """Refuse an extension that does not continue what is known of this site's ledger, or repeat a part of it.

        Refused: `ledger_conflict` (its digests lead nowhere, it begins at a head never seen, or it runs beside the
        heads known), `ledger_shorter` (the same, with fewer entries than are known), `ledger_changed_key`, or
        `ledger_of_another_site`.
        """
        with self._locked():
            self._check(site, extension)

    def countersign(
        self, site: str, extension: Extension, key: Ed25519PrivateKey, *, job_id: str, round_number: int
    ) -> Countersignature:
        """Check, sign, append and flush to disk, then return; a head that has this key's signature gets that one."""
        with self._locked() as file:
            self._check(site, extension)
            known = self._lines.sites.get(site) or SiteHeads(extension.public_key)
            for record in known.records:
                earlier = record.countersignature
                if earlier.head.sha256 == extension.head.sha256 and earlier.by(key.public_key()):
                    return earlier
            signature = countersign(site, extension, key)
            longest = len(known.heads) - 1
            new = extension.digests[max(0, longest - extension.since.length) :]
            record = HeadRecord(
                time=self._now(), job_id=job_id, round=round_number, digests=new, countersignature=signature
            )
            line = self._lines.next_line(record)
            _append(file, (line.model_dump_json() + "\n").encode(), end=self._read)
            self._take_in(file)
            return signature

    def _check(self, site: str, extension: Extension) -> None:
        known = self._lines.sites.get(site)
        if known and known.public_key != extension.public_key:
            raise Refused("ledger_changed_key")
        if not known and any(other.public_key == extension.public_key for other in self._lines.sites.values()):
            raise Refused("ledger_of_another_site")
        if not extension.holds():
            raise Refused("ledger_conflict")
        known = known or SiteHeads(extension.public_key)
        if not all(known.has(head) for head in _passed(extension) if head.length < len(known.heads)) or (
            extension.since.length >= len(known.heads)
        ):
            longest = len(known.heads) - 1
            reason = "ledger_shorter" if extension.head.length < longest else "ledger_conflict"
            raise Refused(reason, f"{extension.head.length} entries, {longest} are known")

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the file, with everything in it taken in."""
        try:
            created = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if created:
                    _flush_folder(self._path.parent)
                self._take_in(file)
                yield file
            finally:
                os.close(file)
        except OSError as error:
            raise InputError(
                "heads_unusable",
                f"Cannot use {self._path}: {error.strerror}. Free space, or name another file; what it held is intact.",
            ) from None

    def _take_in(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size < self._read:
            raise _damaged(self._path, "it became shorter")
        text = _read_on(file, self._read, size)
        whole = text[: text.rfind(b"\n") + 1]
        for line in whole.split(b"\n")[:-1]:
            self._take_in_line(line)
            self._read += len(line) + 1
        if len(whole) < len(text):  # written when the machine stopped: nobody has been given that countersignature
            os.ftruncate(file, self._read)
            os.fsync(file)

    def _take_in_line(self, text: bytes) -> None:
        try:
            self._lines.take_in(text)
        except ValueError:  # pydantic's too
            raise _damaged(self._path, f"the line that begins at byte {self._read}") from None


def read_history(path: Path, site: str) -> tuple[HeadRecord, ...]:
    """Return a site's countersignatures from a file that must be there; InputError `heads_missing`, else as `Heads`."""
    if not path.is_file():
        raise InputError("heads_missing", f"There is no file {path}: name the server's {FILE} with --file.")
    return Heads(path).history(site)


def _passed(extension: Extension) -> Iterator[LedgerHead]:
    """Every head from `since` to `head`, both included."""
    head = extension.since.sha256
    yield extension.since
    for length, digest in enumerate(extension.digests, extension.since.length + 1):
        head = chained(head, (digest,))
        yield LedgerHead(length=length, sha256=head)


def _read_on(file: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(file, end - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _append(file: int, data: bytes, *, end: int) -> None:
    """Write all of it and flush, or leave the file as it was."""
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, end)
        raise


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, where: str) -> InputError:
    return InputError(
        "heads_damaged",
        f"{path} is damaged ({where}): put back a copy in which nothing was altered. Do not delete it: without it, a "
        "ledger that was cut cannot be told.",
    )
