"""A ledger held against the heads that the server countersigned: the only thing that shows what its owner took away.

Whoever has the ledger's key can cut it, or write all of it anew, and every hash and signature fits. The server's
records hold the digest of each entry that it was shown, so the first entry that differs can be named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from multimix.audit.verification.findings import Finding, notice, violation
from multimix.audit.verification.lines import Row
from multimix.audit.verification.order import same_key
from multimix.contract.heads import HeadRecord, SiteHeads
from multimix.contract.privacy import EMPTY_HEAD, LedgerHead, chained

Truncation = Literal["checked", "checked, heads not authenticated", "not checkable"]


@dataclass(frozen=True)
class Held:
    """What the heads say of a ledger."""

    findings: tuple[Finding, ...]
    truncation: Truncation
    covered: int | None  # entries that the longest countersigned head is about; None: no head


def held_against(
    rows: Sequence[Row],
    heads: Sequence[HeadRecord] | None,
    *,
    site: str | None,
    key: str,
    coordinator: Ed25519PublicKey | None,
) -> Held:
    """Compare each countersigned head of this site with the ledger at its length; other sites' are passed over."""
    ours, findings = _ours(heads or (), site, key)
    believed = [record for record in ours if coordinator is None or record.countersignature.by(coordinator)]
    if len(believed) < len(ours):
        text = f"{len(ours) - len(believed)} heads are not signed by this coordinator, and prove nothing"
        findings.append(violation("countersignature_invalid", None, text))
    if not believed:
        findings.append(_not_checkable(none_given=heads is None))
        return Held(tuple(findings), "not checkable", None)
    if coordinator is None:
        findings.append(
            notice("heads_not_authenticated", None, "the coordinator's key was not given: anyone can write such heads")
        )
    longest = max(record.countersignature.head.length for record in believed)
    findings.extend(_compared(rows, believed, _digests(ours)))
    findings.extend(_uncovered(len(rows), longest))
    return Held(tuple(findings), "checked" if coordinator else "checked, heads not authenticated", longest)


def _ours(heads: Sequence[HeadRecord], site: str | None, key: str) -> tuple[list[HeadRecord], list[Finding]]:
    """Return the records about this key, and what is wrong where name and key do not belong together."""
    ours = []
    others = {"head_other_key": 0, "head_other_site": 0}
    for record in heads:
        signature = record.countersignature
        if not same_key(signature.public_key, key):
            others["head_other_key"] += signature.site == site
            continue
        ours.append(record)
        others["head_other_site"] += site is not None and signature.site != site
    texts = {
        "head_other_key": "heads of this site are about a ledger with another key",
        "head_other_site": "heads are about this ledger's key under another site's name",
    }
    findings = [violation(reason, 0, f"{count} {texts[reason]}") for reason, count in others.items() if count]
    return ours, findings


def _compared(rows: Sequence[Row], believed: Sequence[HeadRecord], expected: Sequence[str] | None) -> Iterator[Finding]:
    own = _heads_of(rows)
    asked = [record.countersignature.head for record in believed]
    conflicts = [head for head in asked if head.length <= len(rows) and own[head.length] != head.sha256]
    longest = max(head.length for head in asked)
    if expected is None:
        yield notice("heads_incomplete", None, "digests between the heads are missing: faults are placed less exactly")
    entry = _first_difference(rows, expected[:longest]) if expected else _last_standing(own, asked)
    if conflicts or (expected and entry < min(longest, len(rows))):
        yield violation(
            "head_conflict",
            entry,
            f"the server was shown another entry here: history was written anew ({len(conflicts)} of {len(asked)} "
            "countersigned heads lead elsewhere)",
        )
    if len(rows) < longest:
        yield violation(
            "ledger_truncated", len(rows), f"missing, as all up to {longest - 1}: the server was shown {longest}"
        )


def _heads_of(rows: Sequence[Row]) -> list[str | None]:
    """Return the ledger's head at each length, None from an unreadable line on."""
    heads: list[str | None] = [EMPTY_HEAD]
    for row in rows:
        last = heads[-1]
        heads.append(None if last is None or row.digest is None else chained(last, (row.digest,)))
    return heads


def head_of(rows: Sequence[Row]) -> LedgerHead | None:
    """Return the head over all lines as they stand; None where one cannot be read."""
    last = _heads_of(rows)[-1]
    return None if last is None else LedgerHead(length=len(rows), sha256=last)


def _digests(ours: Sequence[HeadRecord]) -> list[str] | None:
    """Return the digest of each entry up to the longest head; None where those recorded do not lead to the heads."""
    known = SiteHeads(ours[0].countersignature.public_key)
    try:
        for record in ours:
            known.add(record)
    except ValueError:
        return None
    return known.digests


def _first_difference(rows: Sequence[Row], expected: Sequence[str]) -> int:
    for row, digest in zip(rows, expected, strict=False):
        if row.digest != digest:
            return row.number
    return min(len(rows), len(expected))


def _last_standing(own: Sequence[str | None], asked: Sequence[LedgerHead]) -> int:
    """Return the length of the longest head before any that does not stand: the first entry that may differ."""
    stands = {head: head.length < len(own) and own[head.length] == head.sha256 for head in asked}
    shortest = min((head.length for head, fits in stands.items() if not fits), default=len(own))
    return max((head.length for head, fits in stands.items() if fits and head.length < shortest), default=0)


def _uncovered(entries: int, longest: int) -> Iterator[Finding]:
    if entries > longest:
        text = f"{entries - longest} entries are newer than the last countersigned head: their loss would not show"
        yield notice("not_covered", longest, text)


def _not_checkable(*, none_given: bool) -> Finding:
    why = "the server's heads were not given" if none_given else "there is no countersigned head of this ledger"
    return notice(
        "truncation_not_checkable",
        None,
        f"truncation not checkable: {why}. Entries cut off at the end do not show, and whoever has the ledger's key "
        "can have written all of it anew.",
    )
