"""Verify a ledger without trusting who wrote it: every fault that it shows, with the entry concerned.

What this can show depends on what the auditor was given by other means: the ledger's public key shows any change by
someone else, the server's heads show what the key's owner cut or wrote anew, the officer's key shows whose decisions
they are. None of it shows whether the claimed epsilons are right (`multimix.audit.recompute`), nor whether the noise
was drawn as entered (the empirical audit and the replay).
"""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AwareDatetime

from multimix.audit.verification.bookkeeping import (
    answer_findings,
    open_reservations,
    plan_findings,
    round_findings,
    secret_findings,
)
from multimix.audit.verification.claims import claim_findings
from multimix.audit.verification.countersigned import Truncation, head_of, held_against
from multimix.audit.verification.decisions import officer_findings
from multimix.audit.verification.findings import Finding
from multimix.audit.verification.lines import Row, form_findings, rows_of, tail_findings
from multimix.audit.verification.order import genesis_findings, genesis_of, order_findings
from multimix.config import Frozen
from multimix.contract.heads import HeadRecord
from multimix.contract.privacy import LedgerHead
from multimix.contract.signing import public_key
from multimix.errors import InputError
from multimix.privacy.entries import Entry, Genesis


class Verification(Frozen):
    """What a ledger was found to be."""

    site: str | None  # as the ledger says; None: it does not
    population: str | None
    public_key: str  # that the auditor was given
    entries: int  # whole lines
    head: LedgerHead | None  # over all lines as they stand; None where one cannot be read
    last: AwareDatetime | None  # time of the last entry that can be read
    counts: dict[str, int]  # entries by kind
    open_reservations: tuple[int, ...]  # numbers of those never answered: spent all the same
    truncation: Truncation
    covered: int | None  # entries that the longest countersigned head is about
    findings: tuple[Finding, ...]

    @property
    def violations(self) -> tuple[Finding, ...]:
        """What no honest ledger shows."""
        return tuple(finding for finding in self.findings if finding.severity == "violation")

    @property
    def notices(self) -> tuple[Finding, ...]:
        """What a reader must not miss."""
        return tuple(finding for finding in self.findings if finding.severity == "notice")


def verify_ledger(
    raw: bytes,
    *,
    key: str,
    heads: Sequence[HeadRecord] | None,
    coordinator_key: str | None,
    officer_key: str | None,
) -> Verification:
    """Return everything that is wrong with the bytes of a ledger, and what the reader has to know of it.

    `key` is the ledger's public key (base64, Ed25519) as the auditor got it by other means; `heads` are the server's
    records (`multimix.contract.heads.head_records`); other sites' are passed over. It never stops at a fault.

    Raises:
        InputError: `key_unusable` where one of the keys is none.
    """
    ledger_key = _key(key, "ledger's")
    coordinator = None if coordinator_key is None else _key(coordinator_key, "coordinator's")
    if officer_key is not None:
        _key(officer_key, "officer's")
    with _no_collection():
        rows = rows_of(raw, ledger_key)
        genesis, entries = genesis_of(rows), _entries(rows)
        site = genesis.site if genesis else None
        held = held_against(rows, heads, site=site, key=key, coordinator=coordinator)
        findings = (*_of_the_file(raw, rows, key), *held.findings, *_of_the_books(entries, genesis, officer_key))
    return Verification(
        site=site,
        population=genesis.population if genesis else None,
        public_key=key,
        entries=len(rows),
        head=head_of(rows),
        last=entries[-1].time if entries else None,
        counts=dict(Counter(entry.body.kind for entry in entries)),
        open_reservations=open_reservations(entries),
        truncation=held.truncation,
        covered=held.covered,
        findings=findings,
    )


def _of_the_file(raw: bytes, rows: list[Row], key: str) -> Iterator[Finding]:
    """Yield what is wrong whatever the entries say."""
    yield from genesis_findings(rows, key)
    yield from form_findings(rows)
    yield from order_findings(rows)
    yield from tail_findings(raw)


def _of_the_books(entries: Sequence[Entry], genesis: Genesis | None, officer_key: str | None) -> Iterator[Finding]:
    """Yield what is wrong with what they say."""
    for rule in (answer_findings, secret_findings, round_findings, plan_findings, claim_findings):
        yield from rule(entries)
    if genesis:
        yield from officer_findings(entries, genesis, officer_key)


def _entries(rows: list[Row]) -> list[Entry]:
    """Return the entries by number, each once: what stands in the wrong place is told elsewhere."""
    by_digest = {row.digest: row.entry for row in rows if row.entry}
    return sorted((entry for entry in by_digest.values() if entry), key=lambda entry: entry.sequence)


def _key(text: str, whose: str) -> Ed25519PublicKey:
    try:
        return public_key(text)
    except ValueError:
        raise InputError(
            "key_unusable", f"The {whose} public key is not the base64 text of an Ed25519 public key."
        ) from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector: 100,000 entries make no garbage, and looking for it doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
