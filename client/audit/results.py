"""The folder in which an audit of a site gathers its results, one JSON file each, for the report."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from multimix.audit.attacks import MembershipResult
from multimix.audit.empirical import EmpiricalResult
from multimix.audit.evidence.records import canonical
from multimix.audit.replay import Replayed
from multimix.audit.verification.order import same_key
from multimix.config import Frozen
from multimix.contract.privacy import Base64
from multimix.errors import SiteError
from multimix.files import write_atomically

_T = TypeVar("_T", EmpiricalResult, MembershipResult, Replayed)
_OWNER: Final = "ledger.json"


class _Owner(Frozen):
    """Whose results a folder holds: those of two sites of a run have the same names, and would pass for each other."""

    public_key: Base64  # of the ledger


class Results:
    """Results about one ledger on disk: ledger.json (its key), empirical-JOB, membership-JOB and replay-ENTRY.json."""

    def __init__(self, folder: Path, public_key: str) -> None:
        self._folder, self._owner = folder, _Owner(public_key=public_key)

    def begin(self) -> None:
        """Make the folder this ledger's, before anything takes time.

        Raises:
            SiteError: `results_unwritable`, `results_of_another_ledger`.
        """
        self._check_owner()
        self._write(_OWNER, self._owner.model_dump())

    def keep(self, name: str, result: EmpiricalResult | MembershipResult | Replayed) -> None:
        """Write a result; SiteError `results_unwritable`."""
        self._write(f"{name}.json", as_plain(result))

    def empirical(self, jobs: Collection[str]) -> tuple[EmpiricalResult, ...]:
        """Return the empirical audits of these runs."""
        return self._of_runs("empirical", EmpiricalResult, jobs)

    def membership(self, jobs: Collection[str]) -> tuple[MembershipResult, ...]:
        """Return the attacks on these runs' models."""
        return self._of_runs("membership", MembershipResult, jobs)

    def replays(self) -> tuple[Replayed, ...]:
        """Return the replays, by entry."""
        found = self._read("replay", Replayed, self._named("replay"))
        return tuple(sorted(found, key=lambda each: each.sequence))

    def replayed(self, sequence: int) -> Replayed | None:
        """Return the replay of one entry, if there is one."""
        path = self._folder / f"{replay_name(sequence)}.json"
        return self._read("replay", Replayed, [path])[0] if path.exists() else None

    def _of_runs(self, kind: str, record: type[_T], jobs: Collection[str]) -> tuple[_T, ...]:
        found = [path for path in self._named(kind) if path.stem.removeprefix(f"{kind}-") in jobs]
        return self._read(kind, record, found)

    def _named(self, kind: str) -> list[Path]:
        return sorted(self._folder.glob(f"{kind}-*.json"))

    def _read(self, kind: str, record: type[_T], paths: list[Path]) -> tuple[_T, ...]:
        """Read results; SiteError `results_unreadable`, `results_of_another_ledger`."""
        if paths:
            self._check_owner()
        adapter = TypeAdapter(record)
        try:
            return tuple(adapter.validate_json(path.read_bytes()) for path in paths)
        except (OSError, ValidationError):
            raise SiteError(
                "results_unreadable", f"A {kind} result there is not of this software: remove it and audit again."
            ) from None

    def _check_owner(self) -> None:
        """Raise SiteError `results_of_another_ledger` unless the folder is this ledger's, or holds no results."""
        try:
            owner = _Owner.model_validate_json((self._folder / _OWNER).read_bytes())
        except (OSError, ValidationError):
            owner = None
        kinds = ("empirical", "membership", "replay")
        ours = owner is not None and same_key(owner.public_key, self._owner.public_key)
        if not ours and (owner is not None or any(self._named(kind) for kind in kinds)):
            raise SiteError(
                "results_of_another_ledger",
                "The results there are not about the ledger of this key. Give each site a folder of its own.",
            )

    def _write(self, name: str, document: object) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._folder / name, canonical(document).encode() + b"\n")
        except OSError:
            raise SiteError("results_unwritable", "Results cannot be written there. Give another --out.") from None


def as_plain(result: EmpiricalResult | MembershipResult | Replayed) -> object:
    """Return it as plain data for `canonical`, which has words for what is infinite or no number."""
    return asdict(result) if isinstance(result, Replayed) else result.model_dump(mode="json")


def replay_name(sequence: int) -> str:
    """Return the name under which the replay of an entry is kept."""
    return f"replay-{sequence:06d}"
