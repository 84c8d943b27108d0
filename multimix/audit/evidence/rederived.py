"""Evidence derived again from the ledger in a bundle, beside what the bundle claims: nothing is believed.

Prices may differ by what another processor rounds; everything else was copied, and is compared exactly. What other
software would have derived is not vouched for: that the bundle names other software is noted, and explains a
difference, but does not excuse it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from multimix.audit.evidence.build import build_evidence, entries_in
from multimix.audit.evidence.records import Evidence
from multimix.contract.heads import HeadRecord
from multimix.errors import InputError, Refused
from multimix.privacy.statement import build_statement
from multimix.privacy.statement_accounts import Pricing
from multimix.privacy.statement_records import Statement
from multimix.version import code_version

_ROUNDING: Final = 1e-6  # of a price
_SMALLEST: Final = 1e-15  # apart that two prices can be
_EACH: Final = "*"  # of a list, or under any name; no run is called so
_ACCOUNT: Final = dict.fromkeys(("epsilon", "epsilon_private", "prv", "pld", "difference"), True)
_BRACKET: Final = {"low": True, "high": True}
# Where the prices stand: they are computed.
_PRICES: Final[Mapping[str, Any]] = {
    "recomputation": {
        "lifetime": True,
        "private": True,
        "runs": {_EACH: True},
        "rows": {_EACH: {"run": _BRACKET, "lifetime": _BRACKET, "private": _BRACKET}},
    },
    "statement": {"lifetime": _ACCOUNT, "run": _ACCOUNT, "runs": {_EACH: {"account": _ACCOUNT}}},
}
_DERIVED: Final = {
    "verification": ("verification",),
    "recomputation": ("recomputation", "recomputation_error"),
    "facts": ("ledger_sha256", "heads_given", "runs", "refusals", "evaluations", "officer", "tuning", "policy_sha256"),
    "measurements": ("empirical",),  # as they are filed, without exact figures
    "judgement": ("judgement",),
}


@dataclass
class Difference:
    """What differs, as reason codes."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def differences(
    evidence: Evidence, raw: bytes, heads: tuple[HeadRecord, ...] | None, *, price: Pricing | None
) -> Difference:
    """Return what differs, by the names of `_DERIVED` and `statement`, each followed by `_differs`.

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
    found = Difference()
    if evidence.software.get("multimix") != code_version():
        found.notes.append("software_other")
    said, derived = evidence.model_dump(mode="json"), again.model_dump(mode="json")
    for name, fields in _DERIVED.items():
        if not all(_alike(said[each], derived[each], _PRICES.get(each)) for each in fields):
            found.faults.append(f"{name}_differs")
    _compare_statement(found, evidence, raw, price)
    return found


def _compare_statement(found: Difference, evidence: Evidence, raw: bytes, price: Pricing | None) -> None:
    statement = evidence.statement
    if statement is None:
        return
    from multimix.privacy.accountant import price as prices  # noqa: PLC0415  (loads slowly)
    from multimix.privacy.accountant import versions  # noqa: PLC0415

    if statement.accountant_versions != versions():
        found.notes.append("accountants_other")
    again = _restated(statement, raw, price or prices)
    said = statement.model_dump(mode="json")
    if again is None or not _alike(said, again.model_dump(mode="json"), _PRICES["statement"]):
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
    except (InputError, Refused, ValueError):  # the last of a coordinator's key that is none
        return None


def _alike(one: Any, other: Any, prices: Any = None) -> bool:
    """Compare plain data; `prices` is True of a price, else it names the prices below."""
    if isinstance(one, float) and isinstance(other, float):
        both_none = math.isnan(one) and math.isnan(other)
        close = prices is True and math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_SMALLEST)
        return both_none or close or one == other
    below = prices if isinstance(prices, dict) else {}
    if isinstance(one, dict) and isinstance(other, dict):
        named = {name: below.get(name, below.get(_EACH)) for name in one}
        return one.keys() == other.keys() and all(_alike(one[name], other[name], named[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        each = below.get(_EACH)
        return len(one) == len(other) and all(_alike(*pair, each) for pair in zip(one, other, strict=True))
    return bool(one == other)
