"""The folder in which an audit of a site gathers its results, one JSON file each, for the report."""

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from multimix.audit.attacks import MembershipResult
from multimix.audit.empirical import EmpiricalResult
from multimix.audit.replay import Replayed
from multimix.errors import SiteError
from multimix.files import write_atomically

_T = TypeVar("_T", EmpiricalResult, MembershipResult, Replayed)


class Results:
    """Results on disk: empirical-JOB.json, membership-JOB.json, replay-ENTRY.json."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, name: str, result: EmpiricalResult | MembershipResult | Replayed) -> None:
        """Write a result; SiteError `results_unwritable`."""
        adapter: TypeAdapter[object] = TypeAdapter(type(result))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._folder / f"{name}.json", adapter.dump_json(result, indent=1) + b"\n")
        except OSError:
            raise SiteError("results_unwritable", "Results cannot be written there. Give another --out.") from None

    def empirical(self, jobs: Collection[str]) -> tuple[EmpiricalResult, ...]:
        """Return the empirical audits of these runs."""
        return self._all("empirical", EmpiricalResult, jobs)

    def membership(self, jobs: Collection[str]) -> tuple[MembershipResult, ...]:
        """Return the attacks on these runs' models."""
        return self._all("membership", MembershipResult, jobs)

    def replays(self) -> tuple[Replayed, ...]:
        """Return the replays, by entry."""
        return tuple(sorted(self._all("replay", Replayed), key=lambda each: each.sequence))

    def replayed(self, sequence: int) -> Replayed | None:
        """Return the replay of one entry, if there is one."""
        return next((each for each in self.replays() if each.sequence == sequence), None)

    def _all(self, kind: str, record: type[_T], jobs: Collection[str] | None = None) -> tuple[_T, ...]:
        adapter = TypeAdapter(record)
        paths = sorted(self._folder.glob(f"{kind}-*.json"))
        wanted = [path for path in paths if jobs is None or path.stem.removeprefix(f"{kind}-") in jobs]
        try:
            return tuple(adapter.validate_json(path.read_bytes()) for path in wanted)
        except (OSError, ValidationError):
            raise SiteError(
                "results_unreadable", f"A {kind} result there is not of this software: remove it and audit again."
            ) from None
