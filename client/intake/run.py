"""One intake: examine what is new, note each outcome, write a new generation of the store if it differs."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from client.intake.examine import Examined, Item, rules_fingerprint
from client.intake.generation import Holdings, write_generation
from client.intake.journal import Journal, Label
from client.intake.purge import finish_purge, tombstone
from client.intake.reasons import OURS, TRANSIENT
from client.intake.workers import Workers
from client.settings import SiteFolder
from multimix.data.pseudonyms import Pseudonyms
from multimix.errors import SiteError

COMMIT_ITEMS: Final = 64
COMMIT_S: Final = 2.0

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class Summary:
    """What an intake did: items by outcome (stored, or the reason why not), and the store afterwards."""

    unchanged: int
    outcomes: Mapping[str, int]
    holdings: Holdings


def take_in(
    site: SiteFolder,
    items: Iterable[Item],
    *,
    labels: Mapping[str, Iterable[Label]] | None = None,
    without_preamble: bool = False,
    progress: Progress | None = None,
    after: Callable[[Item], None] | None = None,
) -> Summary:
    """Take items in; `labels` replace those of their origin.

    `after` is called for each item whose outcome is durable and not our failure (`reasons.OURS`): those are looked
    at again when decoders or limits have changed.

    Raises:
        SiteError: `intake_running` and others of the settings, journal, labels and PACS.
    """
    rules, limits = site.rules(without_preamble=without_preamble), site.settings.limits
    pseudonyms = site.pseudonyms()
    with site.journal(rules=f"{rules_fingerprint(rules)} {limits.seconds_per_file} {limits.memory_mib}") as journal:
        finish_purge(site, journal)
        unwanted = _replace_labels(journal, pseudonyms, labels or {})
        rules = replace(rules, journal=journal.path)
        with Workers(rules, limits) as workers:
            counter = _Counter(journal, pseudonyms, progress, after)
            wanted = (item for item in items if item.key not in unwanted)
            try:
                for item, found in workers.examined(counter.new(wanted)):
                    counter.note(item, found)
            except KeyboardInterrupt:
                counter.flush()
                raise
            counter.flush()
        return Summary(counter.unchanged, dict(counter.outcomes), write_generation(site, journal))


def _replace_labels(journal: Journal, pseudonyms: Pseudonyms, labels: Mapping[str, Iterable[Label]]) -> set[str]:
    """Put labels in the place of those of their origin, without purged patients; return the masks of these alone."""
    masks: dict[bool, set[str]] = {True: set(), False: set()}
    for origin, rows in labels.items():
        kept = []
        for row in rows:
            purged = _purged(journal, pseudonyms, row)
            masks[purged].add(row.mask_key)
            if not purged:
                kept.append(row)
        journal.replace_labels(origin, kept)
    return masks[True] - masks[False]


def _purged(journal: Journal, pseudonyms: Pseudonyms, row: Label) -> bool:
    return journal.purged([tombstone(pseudonyms, name) for name in row[:3] if name])


class _Counter:
    """Notes outcomes, commits now and then, and tells how far it is."""

    def __init__(
        self,
        journal: Journal,
        pseudonyms: Pseudonyms,
        progress: Progress | None,
        after: Callable[[Item], None] | None,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.unchanged = 0
        self._journal, self._pseudonyms = journal, pseudonyms
        self._progress, self._after = progress, after
        self._met, self._failed = journal.met(), journal.keys_of(OURS)
        self._seen: set[str] = set()
        self._pending: list[Item] = []
        self._uncommitted = 0
        self._committed_at = time.monotonic()

    def new(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items that have to be examined; fetch those that are not here yet."""
        for item in items:
            if item.key in self._met or item.key in self._seen:
                self.unchanged += 1
                if self._after is not None and item.key in self._met and item.key not in self._failed:
                    self._after(item)
                self._tell("unchanged")
                continue
            self._seen.add(item.key)
            if not callable(item.content):
                yield item
                continue
            try:
                yield item._replace(content=item.content())
            except SiteError as error:
                if error.reason not in {"instance_missing", "instance_too_large", "pacs_answer"}:
                    raise
                self._count("retrieval_failed")

    def note(self, item: Item, found: Examined) -> None:
        """Write an outcome down."""
        if found.reason in TRANSIENT:
            self._count(found.reason)
            return
        names = (name for name in (found.keys.patient, found.keys.uid) if name)
        reason = self._journal.add(item.key, found, [tombstone(self._pseudonyms, name) for name in names])
        if self._after is not None and reason not in OURS:
            self._pending.append(item)
        self._count(reason or "stored")
        self._uncommitted += 1
        if self._uncommitted >= COMMIT_ITEMS or time.monotonic() - self._committed_at > COMMIT_S:
            self.flush()

    def flush(self) -> None:
        """Make all outcomes so far durable."""
        self._journal.commit()
        for item in self._pending:
            if self._after is not None:
                self._after(item)
        self._pending = []
        self._uncommitted = 0
        self._committed_at = time.monotonic()

    def _count(self, outcome: str) -> None:
        if outcome == "unchanged":
            self.unchanged += 1
        else:
            self.outcomes[outcome] += 1
        self._tell(outcome)

    def _tell(self, outcome: str) -> None:
        if self._progress is not None:
            self._progress(self.unchanged + sum(self.outcomes.values()), outcome)
