"""Spending before answering, so that no crash in between spends too little or answers twice.

1. The secret behind noise and sampling is written to disk, in a file named by its commitment.
2. The `Reservation` with that commitment is appended to the ledger: from here on the budget is spent.
3. The site trains.
4. The reply is written to disk, whole.
5. The `Commit` with the reply's hash is appended to the ledger.
6. These bytes are sent, again and again if asked.

A crash before 2 has spent nothing and leaves a secret that nobody used. After 2, `find` says where to go on: the same
binding is executed again with the same secret (the same noise: one release, not two), or the reply on disk is
committed. Any difference in the binding is a new reservation with a new secret. After 5 an order for the same plan and
weights is answered by the stored bytes, even if the data changed since, or by nothing.

Secrets (0600), replies and orders (what an audit replays) lie beside the ledger until the privacy officer has them
purged.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Final

from multimix.contract.privacy import PatientPrivacy
from multimix.errors import Refused
from multimix.privacy.entries import Binding, Commit, Entry, Reservation
from multimix.privacy.ledger import Ledger, write_or_refuse, write_refusal
from multimix.privacy.noise import commitment, new_secret

SECRETS: Final = "secrets"
REPLIES: Final = "replies"
ORDERS: Final = "orders"


class Stage(Enum):
    """How far an order got."""

    NOTHING = "nothing"  # reserve, train, keep the reply
    RESERVED = "reserved"  # train again with the same secret
    REPLIED = "replied"  # commit the reply on disk, then send it
    COMMITTED = "committed"  # send the stored reply


@dataclass(frozen=True)
class Found:
    """What the ledger and the disk say about an order."""

    stage: Stage
    sequence: int | None = None  # of the reservation
    reservation: Reservation | None = None


@dataclass(frozen=True)
class _Book:
    """The reservations of a ledger and their commits, by the reservation's sequence number."""

    reserved: dict[int, Reservation]
    commits: dict[int, Commit]

    def answered(self, binding: Binding) -> int | None:
        """Return the reservation whose answer is the answer to this plan on these weights."""
        for sequence in self.commits:
            other = self.reserved[sequence].binding
            if (other.plan_sha256, other.weights_sha256) == (binding.plan_sha256, binding.weights_sha256):
                return sequence
        return None

    def only_one(self, sequence: int) -> Reservation:
        """Return a reservation that has answered, or still may."""
        if sequence not in self.reserved:
            raise Refused("reservation_unknown", f"entry {sequence}")
        reservation = self.reserved[sequence]
        if self.answered(reservation.binding) not in (None, sequence):
            raise Refused("answered_already", f"entry {sequence}")
        return reservation


class Reservations:
    """The secrets and replies beside a ledger; whatever writes needs the ledger open."""

    def __init__(self, folder: Path) -> None:
        self._secrets, self._replies, self._orders = folder / SECRETS, folder / REPLIES, folder / ORDERS

    def find(self, ledger: Ledger, binding: Binding, *, dp: PatientPrivacy, steps: int) -> Found:
        """Tell how far an order got; the same order has all fields of the binding, `dp` and `steps` in common."""
        book = _book(ledger)
        answered = book.answered(binding)
        if answered is not None:
            return Found(Stage.COMMITTED, answered, book.reserved[answered])
        same = [
            (sequence, reservation)
            for sequence, reservation in book.reserved.items()
            if (reservation.binding, reservation.dp, reservation.steps) == (binding, dp, steps)
        ]
        for sequence, reservation in same:
            if self._reply_path(sequence, reservation).exists():
                return Found(Stage.REPLIED, sequence, reservation)
        return Found(Stage.RESERVED, *same[0]) if same else Found(Stage.NOTHING)

    def reserve(
        self, ledger: Ledger, body: Callable[[str], Reservation], secret: bytes | None = None
    ) -> tuple[Entry, bytes]:
        """Write a secret (a fresh one, unless a simulation gives its own), then the reservation made from its hash.

        Raises:
            Refused: `secret_reused` where another reservation has it, unless declared as seeded; whatever
                `Ledger.append` refuses. Then nothing is spent and nothing may be trained.
        """
        ledger.require_open()
        self._sweep()
        secret = new_secret() if secret is None else secret
        reservation = body(commitment(secret))
        if reservation.commitment != commitment(secret):
            raise Refused("secret_damaged")
        used = {other.commitment for other in _book(ledger).reserved.values()}
        if reservation.commitment in used and not reservation.seeded:
            raise Refused("secret_reused")
        self._keep_secret(reservation, secret)
        return ledger.append(reservation), secret

    def secret_of(self, reservation: Reservation) -> bytes:
        """Return the secret; Refused `secret_missing`, or `secret_damaged` where it is not the one committed to."""
        try:
            secret = self._secret_path(reservation).read_bytes()
        except OSError:
            raise Refused("secret_missing") from None
        if commitment(secret) != reservation.commitment:
            raise Refused("secret_damaged")
        return secret

    def keep_order(self, ledger: Ledger, binding: Binding, packed: bytes) -> None:
        """Write what was ordered, the weights received with it, under the plan's hash; once.

        Raises:
            Refused: `ledger_not_open`, `ledger_disk_full`, `ledger_unwritable`.
        """
        ledger.require_open()
        self._make_folders()
        if not self._order_path(binding).exists():
            write_or_refuse(self._order_path(binding), packed)

    def has_order(self, binding: Binding) -> bool:
        """Whether an order is kept."""
        return self._order_path(binding).exists()

    def order_of(self, binding: Binding) -> bytes:
        """Return what `keep_order` wrote; Refused `order_missing`. Who reads it holds it against the binding."""
        try:
            return self._order_path(binding).read_bytes()
        except OSError:
            raise Refused("order_missing") from None

    def keep_reply(self, ledger: Ledger, sequence: int, data: bytes) -> bytes:
        """Write the reply of a reservation, commit it, and return the bytes to send.

        Those are not `data` if an earlier execution left a reply: the first on disk is the only one.

        Raises:
            Refused: `reservation_unknown`; `answered_already` where another reservation answered the same plan on
                the same weights; as `stored_reply`; whatever `Ledger.append` refuses (try again: nothing was sent).
        """
        ledger.require_open()
        book = _book(ledger)
        path = self._reply_path(sequence, book.only_one(sequence))
        if sequence not in book.commits and not path.exists():
            write_or_refuse(path, data)
        return self.stored_reply(ledger, sequence)

    def stored_reply(self, ledger: Ledger, sequence: int) -> bytes:
        """Return the reply on disk to send it, committed before if it was not.

        Raises:
            Refused: `reservation_unknown`, `answered_already`, `reply_missing` (never written), `reply_purged`
                (committed, and gone), `reply_damaged` (not what was committed); as `Ledger.append`.
        """
        book = _book(ledger)
        reservation = book.only_one(sequence)
        commit = book.commits.get(sequence)
        try:
            data = self._reply_path(sequence, reservation).read_bytes()
        except OSError:
            raise Refused("reply_purged" if commit else "reply_missing") from None
        reply_sha256 = hashlib.sha256(data).hexdigest()
        if commit is None:
            ledger.append(Commit(reservation=sequence, reply_sha256=reply_sha256))
        elif commit.reply_sha256 != reply_sha256:
            raise Refused("reply_damaged")
        return data

    def reply_bytes(self, sequence: int, reservation: Reservation) -> bytes:
        """Return what lies on disk as the reply of a committed reservation, for an audit; enters nothing.

        Raises:
            Refused: `reply_purged`. Whether these are the bytes committed is for who reads them to check.
        """
        try:
            return self._reply_path(sequence, reservation).read_bytes()
        except OSError:
            raise Refused("reply_purged") from None

    def purge(self, ledger: Ledger, before: datetime | None = None) -> int:
        """Remove secrets, orders and replies of committed reservations (made before a time); return of how many.

        The officer's decision, for which the caller appends the entry first. The budget stays spent, the rounds can no
        longer be replayed, and the answers can no longer be sent. Uncommitted reservations keep what they have.
        """
        ledger.require_open()
        book = _book(ledger)
        self._sweep()
        waiting = [each for sequence, each in book.reserved.items() if sequence not in book.commits]
        needed = {path for each in waiting for path in (self._secret_path(each), self._order_path(each.binding))}
        purged = 0
        for sequence in book.commits:
            reservation = book.reserved[sequence]
            if before is not None and ledger.entries[sequence].time >= before:
                continue
            paths = {self._reply_path(sequence, reservation), self._secret_path(reservation)}
            paths.add(self._order_path(reservation.binding))
            removed = [_remove(path) for path in paths - needed]  # a simulation may use a secret twice
            purged += any(removed)
        if purged:
            _flush(*(each for each in (self._secrets, self._replies, self._orders) if each.exists()))
        return purged

    def _make_folders(self) -> None:
        try:
            for folder in (self._secrets, self._replies, self._orders):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise write_refusal(error) from None
        _flush(self._secrets.parent)

    def _keep_secret(self, reservation: Reservation, secret: bytes) -> None:
        self._make_folders()
        write_or_refuse(self._secret_path(reservation), secret)

    def _secret_path(self, reservation: Reservation) -> Path:
        return self._secrets / reservation.commitment

    def _reply_path(self, sequence: int, reservation: Reservation) -> Path:
        """Both in the name: no reply passes for that of a reservation in another ledger's or backup's place."""
        return self._replies / f"{sequence}-{reservation.commitment}"

    def _order_path(self, binding: Binding) -> Path:
        return self._orders / binding.plan_sha256

    def _sweep(self) -> None:
        """Remove what writes cut by a crash left: files that never got their name."""
        for folder in (self._secrets, self._replies, self._orders):
            for path in folder.glob(".*"):
                _remove(path)


def _book(ledger: Ledger) -> _Book:
    """Refused `ledger_damaged` where a commit names no reservation before it, or a second answer for one."""
    reserved: dict[int, Reservation] = {}
    commits: dict[int, Commit] = {}
    for entry in ledger.entries:
        if isinstance(entry.body, Reservation):
            reserved[entry.sequence] = entry.body
        elif isinstance(entry.body, Commit):
            if entry.body.reservation not in reserved or entry.body.reservation in commits:
                raise Refused("ledger_damaged", f"entry {entry.sequence}")
            commits[entry.body.reservation] = entry.body
    return _Book(reserved, commits)


def _flush(*folders: Path) -> None:
    """See that names made or removed in these folders are on disk."""
    try:
        for folder in folders:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise write_refusal(error) from None


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise write_refusal(error) from None
    return True
