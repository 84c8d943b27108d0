"""From a ledger's folder and the results beside it to the evidence of an audit."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import JsonValue

from client.audit.results import Results
from multimix.audit.evidence.build import build_evidence, entries_in
from multimix.audit.evidence.records import Evidence, Keys
from multimix.contract.heads import HeadRecord
from multimix.contract.privacy import Countersignature
from multimix.errors import Refused, SiteError
from multimix.privacy.accountant import price, versions
from multimix.privacy.chain import verified_chain
from multimix.privacy.entries import Genesis
from multimix.privacy.history import reservations
from multimix.privacy.statement import build_statement
from multimix.privacy.statement_records import Statement


def evidence_of(
    raw: bytes,
    *,
    keys: Keys,
    heads: Sequence[HeadRecord] | None,
    statement: Statement | None,
    made: datetime,
    found: Results,
    membership: bool,
    policy: dict[str, JsonValue] | None,
) -> Evidence:
    """Return the evidence with the results about this ledger's runs; raises as `build_evidence` and `Results`."""
    entries = entries_in(raw)
    jobs = {reservation.binding.job_id for reservation in reservations(entries)}
    return build_evidence(
        raw,
        keys=keys,
        heads=heads,
        statement=statement,
        made=made,
        empirical=found.empirical(jobs),
        membership=found.membership(jobs) if membership else (),
        replays=[each for each in found.replays() if each.job_id in jobs and each.sequence < len(entries)],
        policy=policy,
    )


def statement_of_ledger(raw: bytes, heads: Sequence[HeadRecord] | None, *, coordinator: str | None) -> Statement | None:
    """Return the lifetime's statement from the ledger alone; None where it holds no private training or is damaged.

    What the site declared (patients, images, limits) is what its newest reservation says.
    """
    try:
        chain = verified_chain(raw)
        made = reservations(chain.entries)
        last = made[-1]
        return build_statement(
            chain.entries,
            head=chain.head,
            countersignature=_newest(heads or (), chain.genesis),
            declared_patients=last.dp.declared_patients,
            images_per_patient=max(each.dp.images_per_patient for each in made),
            delta=last.delta,
            delta_reason="as the ledger's newest reservation has it",
            limit_run=last.limit_run,
            limit_lifetime=last.limit_lifetime,
            forecast_rounds=None,
            accountant_versions=versions(),
            price=price,
            coordinator_key=coordinator,
        )
    except (Refused, SiteError, IndexError):
        return None


def _newest(heads: Sequence[HeadRecord], genesis: Genesis) -> Countersignature | None:
    """Return the countersignature of the longest head that the server gave this ledger."""
    about = [
        record.countersignature
        for record in heads
        if (record.countersignature.site, record.countersignature.public_key) == (genesis.site, genesis.public_key)
    ]
    return max(about, key=lambda signature: signature.head.length, default=None)
