"""The ledger of a hospital's patient population: what was ever spent of these patients' privacy, and never less.

A folder (0700) that outlives runs and installations: `ledger.jsonl` (one sealed entry a line, only appended to, see
`multimix.privacy.chain`), `ledger.key` (Ed25519, raw, 0600), `lock`, and `countersigned.json` (the newest head that the
server countersigned). One process at a time writes.

An entry counts once `append` has returned: the line is on disk. A last line without its end was cut by a crash or a
full disk before that; it is removed on opening. Anything else that is wrong refuses, and changes nothing. A tail of
whole lines that was cut off shows against the countersignature, here and at the server, which keeps every head.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from multimix.contract.messages import canonical_json
from multimix.contract.privacy import Countersignature, Extension, LedgerHead
from multimix.contract.signing import public_text
from multimix.errors import Refused, SiteError
from multimix.files import write_atomically
from multimix.privacy.chain import Chain, seal, verified_chain
from multimix.privacy.entries import Body, Entry, Genesis

FILE: Final = "ledger.jsonl"
KEY_FILE: Final = "ledger.key"
COUNTERSIGNED_FILE: Final = "countersigned.json"
_LOCK_FILE: Final = "lock"
_CLOCK_TOLERANCE: Final = timedelta(seconds=60)
_LONGEST_EXTENSION: Final = 100_000  # digests in one message
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Clock = Callable[[], datetime]


def utcnow() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class _Pen:
    """What it takes to write."""

    key: Ed25519PrivateKey
    now: Clock


class Ledger:
    """A verified ledger: to read, and to append to while `open_ledger` holds its lock."""

    def __init__(
        self, folder: Path, chain: Chain, countersigned: Countersignature | None, pen: _Pen | None = None
    ) -> None:
        self._folder, self._chain, self._countersigned, self._pen = folder, chain, countersigned, pen

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, the genesis first; an entry's sequence number is its place here."""
        return self._chain.entries

    @property
    def head(self) -> LedgerHead:
        """How many entries, and the hash over them all."""
        return self._chain.head

    @property
    def public_key(self) -> str:
        """Of the ledger, base64."""
        return self._chain.genesis.public_key

    @property
    def site(self) -> str:
        """Whose patients they are."""
        return self._chain.genesis.site

    @property
    def population(self) -> str:
        """Which patients of the site."""
        return self._chain.genesis.population

    def append(self, body: Body) -> Entry:
        """Write one entry to disk; once this returns it stays.

        Raises:
            Refused: `ledger_not_open` (a view, or after the `with`), `ledger_clock_back`, `ledger_entry_invalid`,
                `ledger_disk_full`, `ledger_unwritable`; the ledger is then as it was.
        """
        pen = self._require_pen()
        head = self.head
        time = _not_before(self.entries[-1].time, pen.now())
        try:
            sealed = seal(Entry(sequence=head.length, previous=head.sha256, time=time, body=body), pen.key)
            grown = self._chain.grown(sealed)  # reads the text back: what could not be opened is never written
        except (ValueError, Refused):
            raise Refused("ledger_entry_invalid") from None
        _append_line(self._folder / FILE, sealed.line.encode() + b"\n", size=self._chain.size)
        self._chain = grown
        return grown.entries[-1]

    def head_at(self, length: int) -> str | None:
        """Return the head after so many entries, or None where there were never so many."""
        return self._chain.heads[length] if 0 <= length < len(self._chain.heads) else None

    def extension(self, since: LedgerHead | None) -> Extension:
        """Prove that this ledger has grown from a head (None: from nothing) to the present one.

        Raises:
            Refused: `ledger_truncated` where it never had that head, `ledger_extension_too_long`.
        """
        since = LedgerHead() if since is None else since
        if not self._chain.has(since):
            raise Refused("ledger_truncated", f"{self.head.length} entries, expected at least {since.length}")
        digests = self._chain.digests[since.length :]
        if len(digests) > _LONGEST_EXTENSION:
            raise Refused("ledger_extension_too_long", f"{len(digests)} entries, at most {_LONGEST_EXTENSION}")
        return Extension(public_key=self.public_key, since=since, digests=digests, head=self.head)

    def countersigned(self) -> Countersignature | None:
        """Return the newest countersignature received."""
        return self._countersigned

    def keep_countersignature(self, countersignature: Countersignature, coordinator_key: Ed25519PublicKey) -> None:
        """Store what the server countersigned, if it is newer than what is stored.

        Raises:
            Refused: `countersignature_invalid` (not by this coordinator), `ledger_of_another_site`,
                `ledger_truncated` (the server saw entries that are not here), `ledger_disk_full`, `ledger_unwritable`.
        """
        self._require_pen()
        if not countersignature.by(coordinator_key):
            raise Refused("countersignature_invalid")
        _check_countersignature(countersignature, self._chain)
        if self._countersigned is None or countersignature.head.length > self._countersigned.head.length:
            write_or_refuse(self._folder / COUNTERSIGNED_FILE, canonical_json(countersignature).encode())
            self._countersigned = countersignature

    def require_open(self) -> None:
        """Refuse `ledger_not_open` a view, and a ledger whose `with` has ended."""
        self._require_pen()

    def _require_pen(self) -> _Pen:
        if self._pen is None:
            raise Refused("ledger_not_open")
        return self._pen


def create_ledger(folder: Path, *, site: str, population: str, now: Clock = utcnow) -> None:
    """Make the folder, a key and the first entry; a creation cut short by a crash is taken up with its key.

    Raises:
        SiteError: `ledger_exists`; a ledger is never replaced.
        Refused: `ledger_busy`, `ledger_key_unusable`, `ledger_disk_full`, `ledger_unwritable`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise write_refusal(error) from None
    with _locked(folder):
        if any((folder / name).exists() for name in (FILE, COUNTERSIGNED_FILE)):
            raise SiteError("ledger_exists", "This population has a ledger. It is kept for good, never replaced.")
        if not (folder / KEY_FILE).exists():
            write_or_refuse(folder / KEY_FILE, Ed25519PrivateKey.generate().private_bytes_raw())
        key = _load_key(folder)
        genesis = Genesis(site=site, population=population, public_key=public_text(key))
        first = seal(Entry(sequence=0, previous=LedgerHead().sha256, time=now().astimezone(UTC), body=genesis), key)
        write_or_refuse(folder / FILE, first.line.encode() + b"\n")


@contextmanager
def open_ledger(folder: Path, *, site: str, population: str, now: Clock = utcnow) -> Iterator[Ledger]:
    """Lock, read and verify a ledger, for writing.

    Hashes and the last signature are checked: they authenticate all entries (see `multimix.privacy.chain`).

    Raises:
        Refused: `ledger_missing`, `ledger_busy` (open elsewhere, in this process or another), `ledger_damaged`,
            `ledger_truncated`, `ledger_of_another_site`, `ledger_key_unusable`, `countersignature_invalid`,
            `ledger_unreadable`, `ledger_unwritable`.
    """
    _size_of(folder / FILE)  # before a lock is made: no file appears where no ledger is
    with _locked(folder):
        ledger = read_ledger(folder, site=site, population=population)
        key = _load_key(folder)
        if public_text(key) != ledger.public_key:
            raise Refused("ledger_of_another_site")
        _cut_torn_line(folder / FILE, ledger._chain.size)  # noqa: SLF001
        ledger._pen = _Pen(key, now)  # noqa: SLF001
        try:
            yield ledger
        finally:
            ledger._pen = None  # noqa: SLF001


def read_ledger(
    folder: Path, *, site: str | None = None, population: str | None = None, every_signature: bool = False
) -> Ledger:
    """Read and verify a ledger without lock or key, for officers and statements; Refused as in `open_ledger`."""
    countersigned = _read_countersigned(folder)  # first: entries may be added meanwhile, and none are removed
    chain = verified_chain(_read(folder / FILE), every_signature=every_signature)
    genesis = chain.genesis
    if site not in (None, genesis.site) or population not in (None, genesis.population):
        raise Refused("ledger_of_another_site")
    if countersigned is not None:
        _check_countersignature(countersigned, chain)
    return Ledger(folder, chain, countersigned)


def write_refusal(error: OSError) -> Refused:
    """Return the refusal for a write that failed; the system's own words may hold a path and are left out."""
    return Refused("ledger_disk_full" if error.errno in _DISK_FULL else "ledger_unwritable")


def write_or_refuse(path: Path, data: bytes) -> None:
    """Write a whole file (0600) to disk, or refuse: `ledger_disk_full`, `ledger_unwritable`."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise write_refusal(error) from None


def _not_before(last: datetime, now: datetime) -> datetime:
    if now < last - _CLOCK_TOLERANCE:
        raise Refused("ledger_clock_back", f"{(last - now).total_seconds():.0f} s before the last entry")
    return max(last, now).astimezone(UTC)


def _append_line(path: Path, line: bytes, *, size: int) -> None:
    """Append to a file of this size; on an error cut it back. What even that left is seen at the next append."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        raise write_refusal(error) from None
    try:
        if os.fstat(descriptor).st_size != size:
            raise Refused("ledger_unwritable", "changed since it was opened")
        _write_and_flush(descriptor, line)
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        raise write_refusal(error) from None
    finally:
        os.close(descriptor)


def _write_and_flush(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]  # a disk that fills up takes a part
    os.fsync(descriptor)


def _cut_torn_line(path: Path, size: int) -> None:
    if _size_of(path) == size:
        return
    try:
        with path.open("rb+") as file:
            file.truncate(size)
            os.fsync(file.fileno())
    except OSError as error:
        raise write_refusal(error) from None


def _check_countersignature(countersignature: Countersignature, chain: Chain) -> None:
    genesis = chain.genesis
    if (countersignature.site, countersignature.public_key) != (genesis.site, genesis.public_key):
        raise Refused("ledger_of_another_site")
    if not chain.has(countersignature.head):
        seen = countersignature.head.length
        raise Refused("ledger_truncated", f"{chain.head.length} entries, the server saw {seen}")


def _read_countersigned(folder: Path) -> Countersignature | None:
    """Return what is stored. Its signature was checked when it came: the coordinator's key may be another by now."""
    try:
        return Countersignature.model_validate_json((folder / COUNTERSIGNED_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise Refused("countersignature_invalid") from None
    except OSError:
        raise Refused("ledger_unreadable") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Refused("ledger_missing") from None
    except OSError:
        raise Refused("ledger_unreadable") from None


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise Refused("ledger_missing") from None
    except OSError:
        raise Refused("ledger_unreadable") from None


def _load_key(folder: Path) -> Ed25519PrivateKey:
    try:
        descriptor = os.open(folder / KEY_FILE, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            private = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077 == 0
            key = Ed25519PrivateKey.from_private_bytes(file.read())
    except (OSError, ValueError):
        raise Refused("ledger_key_unusable") from None
    if not private:
        raise Refused("ledger_key_unusable", "others than its owner may read it")
    return key


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock, or refuse `ledger_busy`; it goes with the file handle, also in a crash."""
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise write_refusal(error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused("ledger_busy") from None
        yield
    finally:
        os.close(descriptor)
