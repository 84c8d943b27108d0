"""The privacy officer's decisions, and what was done without one.

An entry under another key, or lifted from another ledger or place, decides nothing (`multimix.privacy.officer`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from multimix.audit.verification.findings import Finding, notice, violation
from multimix.privacy.entries import Entry, Genesis, NonPrivate, Officer, OfficerAction, Reservation
from multimix.privacy.officer import signed_by_officer


@dataclass
class _Permissions:
    """What the officer has allowed so far."""

    genesis: Genesis
    officer_key: str | None
    given: set[OfficerAction] = field(default_factory=set)
    exposed: bool = False

    def officer(self, entry: Entry, body: Officer) -> Iterator[Finding]:
        if not signed_by_officer(entry, self.genesis.site, self.genesis.population, body.officer_key):
            yield violation("officer_signature", entry.sequence, "not signed by the officer it names, at this place")
        elif self.officer_key is not None and body.officer_key != self.officer_key:
            yield violation("officer_unknown", entry.sequence, "signed with another key than the officer's")
        else:
            self.given.add(body.action)

    def non_private(self, entry: Entry) -> Iterator[Finding]:
        if self.officer_key is not None and "allow_non_private" not in self.given:
            yield violation("non_private_not_signed", entry.sequence, "training without privacy, never allowed before")
        self.given.discard("private_after_non_private")  # it holds until the next exposure
        self.exposed = True

    def private(self, entry: Entry) -> Iterator[Finding]:
        if self.exposed and self.officer_key is not None and "private_after_non_private" not in self.given:
            text = "private training after training without privacy, without the officer"
            yield violation("population_exposed", entry.sequence, text)


def officer_findings(entries: Iterable[Entry], genesis: Genesis, officer_key: str | None) -> Iterator[Finding]:
    """Yield decisions that are not the officer's, and what needed one and had none (only with the officer's key)."""
    permissions = _Permissions(genesis, officer_key)
    concerned = []
    for entry in entries:
        if isinstance(entry.body, Officer):
            concerned.append(entry.sequence)
            yield from permissions.officer(entry, entry.body)
        elif isinstance(entry.body, NonPrivate):
            concerned.append(entry.sequence)
            yield from permissions.non_private(entry)
        elif isinstance(entry.body, Reservation):
            yield from permissions.private(entry)
    if officer_key is None and concerned:
        text = f"the officer's key was not given: whose decisions these {len(concerned)} entries rest on is not known"
        yield notice("officer_not_checked", concerned[0], text)
