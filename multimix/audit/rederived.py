"""Evidence derived again from the ledger in a bundle, beside what the bundle claims: nothing is believed.

Numbers may differ by what another processor rounds, and no further. What other versions of the software or of its
accountants would compute differently is noted, not accused, unless the ledger itself shows it.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from multimix.audit.evidence import build_evidence, entries_in
from multimix.audit.evidence_records import Evidence
from multimix.contract.heads import HeadRecord
from multimix.errors import InputError, Refused
from multimix.privacy.statement import build_statement
from multimix.privacy.statement_accounts import Pricing
from multimix.privacy.statement_records import Statement
from multimix.version import code_version

_ROUNDING: Final = 1e-6
_DERIVED: Final = {
    "verification": ("verification",),
    "recomputation": ("recomputation", "recomputation_error"),
    "facts": ("ledger_sha256", "heads_given", "runs", "refusals", "evaluations", "officer", "tuning", "policy_sha256"),
    "judgement": ("judgement",),
}


@dataclass
class Difference:
    """What differs, as reason codes."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    same_software: bool = True


def differences(
    evidence: Evidence, raw: bytes, heads: tuple[HeadRecord, ...] | None, *, price: Pricing | None
) -> Difference:
    """Return what differs: verification, recomputation, facts, judgement or statement, each followed by `_differs`.

    Raises:
        InputError: as `build_evidence`.
    """
    again = build_evidence(
        raw,
        keys=evidence.keys,
        heads=heads,
        statement=evidence.statement,
        made=evidence.made,
        empirical=evidence.empirical,
        membership=evidence.membership,
        replays=evidence.replays,
        policy=evidence.policy,
        software=evidence.software,
    )
    found = Difference(same_software=evidence.software.get("multimix") == code_version())
    said, derived = evidence.model_dump(mode="json"), again.model_dump(mode="json")
    for name, fields in _DERIVED.items():
        if not all(_alike(said[each], derived[each]) for each in fields):
            found.faults.append(f"{name}_differs")
    _compare_statement(found, evidence, raw, price)
    return found


def _compare_statement(found: Difference, evidence: Evidence, raw: bytes, price: Pricing | None) -> None:
    statement = evidence.statement
    if statement is None or evidence.verification.violations:
        return  # a statement of a ledger with faults is none, and the judgement says so
    from multimix.privacy.accountant import price as prices  # noqa: PLC0415  (loads slowly)
    from multimix.privacy.accountant import versions  # noqa: PLC0415

    if price is None and statement.accountant_versions != versions():
        found.notes.append("statement_not_derived")
        return
    again = _restated(statement, raw, price or prices)
    if again is None or not _alike(statement.model_dump(mode="json"), again.model_dump(mode="json")):
        found.faults.append("statement_differs")


def _restated(statement: Statement, raw: bytes, price: Pricing) -> Statement | None:
    """Return the statement made again of the same ledger and declarations; None where that is refused."""
    limits = [each.account.limit for each in statement.runs] or [statement.lifetime.limit]
    try:
        return build_statement(
            entries_in(raw),
            head=statement.ledger.head,
            countersignature=statement.ledger.countersignature,
            declared_patients=statement.declared_patients,
            images_per_patient=statement.images_per_patient,
            delta=statement.delta,
            delta_reason=statement.delta_reason,
            limit_run=statement.run.limit if statement.run else limits[0],
            limit_lifetime=statement.lifetime.limit,
            job_id=statement.job_id,
            forecast_rounds=statement.forecast_rounds,
            accountant_versions=statement.accountant_versions,
            price=price,
            coordinator_key=statement.ledger.coordinator_key,
        )
    except (InputError, Refused):
        return None


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        both_none = math.isnan(one) and math.isnan(other)
        return both_none or math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)
