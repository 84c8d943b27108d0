"""The evidence of an audit: what a ledger's bytes show, beside what was measured at the site, and what it comes to.

A pure function of the bytes, the keys and the measurements, so that whoever gets the evidence can derive it again.
Nothing in a ledger that cannot be read stops it: what is wrong is part of the evidence.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Final, TypeVar

from pydantic import AwareDatetime, JsonValue

from multimix.audit.attacks import MembershipResult
from multimix.audit.empirical import EmpiricalResult
from multimix.audit.evidence.flags import coarse
from multimix.audit.evidence.records import Evidence, Judgement, Keys, RunFacts, canonical
from multimix.audit.evidence.verdict import judge
from multimix.audit.recompute import Recomputation, RecomputeError, recompute
from multimix.audit.replay import Replayed
from multimix.audit.verification.order import same_key
from multimix.audit.verification.verify import Verification, verify_ledger
from multimix.contract.heads import HeadRecord
from multimix.errors import InputError
from multimix.privacy.entries import Commit, Entry, Evaluation, NonPrivate, Officer, Refusal, Reservation, Tuning
from multimix.privacy.history import spent_runs
from multimix.privacy.statement_accounts import by_run
from multimix.privacy.statement_records import Statement
from multimix.version import code_version

_SOFTWARE: Final = ("torch", "numpy", "opacus", "dp-accounting")
_UNJUDGED: Final = Judgement(word="incomplete", contradictions=(), gaps=())
_Value = TypeVar("_Value")


def build_evidence(
    raw: bytes,
    *,
    keys: Keys,
    heads: Sequence[HeadRecord] | None,
    statement: Statement | None,
    made: AwareDatetime,
    empirical: Sequence[EmpiricalResult] = (),
    membership: Sequence[MembershipResult] = (),
    replays: Sequence[Replayed] = (),
    policy: dict[str, JsonValue] | None = None,
    software: dict[str, str] | None = None,
) -> Evidence:
    """Verify and recompute a ledger, and put it together with what was measured.

    Args:
        raw: `ledger.jsonl`.
        keys: As got by other means; the auditor's is the one that signs the bundle.
        heads: The server's records, None if not given; other sites' change nothing.
        statement: As the site makes it; its delta is that of the recomputed totals.
        made: When.
        empirical: Audits of the site's software; filed without the exact figures of neighbours (`coarse`).
        membership: Attacks on a released model: exact figures. Give only what the officer releases.
        replays: Of this ledger's rounds.
        policy: The site's policy, as plain data without paths.
        software: Versions by name; of what runs here unless given.

    Raises:
        InputError: `key_unusable`; `policy_names_a_path`; `rate_invalid`, `guarantee_invalid` of an attack's figures.
    """
    _check_policy(policy)
    verification = verify_ledger(
        raw, key=keys.ledger, heads=heads, coordinator_key=keys.coordinator, officer_key=keys.officer
    )
    recomputation, error = _recomputed(raw, statement.delta if statement else None)
    entries = entries_in(raw)
    evidence = Evidence(
        made=made,
        keys=keys,
        ledger_sha256=hashlib.sha256(raw).hexdigest(),
        heads_given=heads is not None,
        verification=verification,
        recomputation=recomputation,
        recomputation_error=error,
        statement=statement,
        empirical=tuple(coarse(each) for each in empirical),
        membership=tuple(membership),
        replays=tuple(replays),
        runs=_runs(entries),
        refusals=_kept(entries, Refusal),
        evaluations=_kept(entries, Evaluation),
        officer=_kept(entries, Officer),
        tuning=_kept(entries, Tuning),
        policy=policy,
        policy_sha256=None if policy is None else hashlib.sha256(canonical(policy).encode()).hexdigest(),
        software=software_versions() if software is None else software,
        judgement=_UNJUDGED,
    )
    return evidence.model_copy(update={"judgement": judge(evidence)})


def software_versions() -> dict[str, str]:
    """Return the versions of what computes here; of this software with the hash of its code."""
    packages = {name: metadata.version(name) for name in _SOFTWARE}
    return {"multimix": code_version(), "python": platform.python_version(), **packages}


def heads_about(heads: Iterable[HeadRecord], verification: Verification) -> tuple[HeadRecord, ...]:
    """Return the records under this site's name or about this ledger's key: those that the verification reads."""
    return tuple(
        record
        for record in heads
        if record.countersignature.site == verification.site
        or same_key(record.countersignature.public_key, verification.public_key)
    )


def entries_in(raw: bytes) -> tuple[Entry, ...]:
    """Return every entry that can be read; what is wrong with the others is for `verify_ledger` to say."""
    found = []
    for line in raw.split(b"\n")[:-1]:
        try:
            found.append(Entry.model_validate_json(json.loads(line)["document"]))
        except (ValueError, KeyError, TypeError, RecursionError):  # pydantic's too
            continue
    return tuple(found)


def _recomputed(raw: bytes, delta: float | None) -> tuple[Recomputation | None, str | None]:
    try:
        return recompute(raw.split(b"\n")[:-1], delta=delta), None
    except RecomputeError as error:
        return None, error.reason


def _runs(entries: Sequence[Entry]) -> tuple[RunFacts, ...]:
    entries_of = by_run(entries)
    return tuple(_run(job, entries_of[job]) for job in spent_runs(entries))


def _run(job_id: str, entries: Sequence[Entry]) -> RunFacts:
    reserved = {entry.sequence: entry.body for entry in entries if isinstance(entry.body, Reservation)}
    plain = [(entry.time, entry.body) for entry in entries if isinstance(entry.body, NonPrivate)]
    trained: list[Reservation | NonPrivate] = [*reserved.values(), *(body for _, body in plain)]
    times = [entry.time for entry in entries if isinstance(entry.body, Reservation | NonPrivate)]
    answered = {entry.body.reservation for entry in entries if isinstance(entry.body, Commit)}
    bodies = list(reserved.values())
    dp: dict[str, Reservation] = {}
    for body in bodies:
        dp.setdefault(body.dp.model_dump_json(), body)
    return RunFacts(
        job_id=job_id,
        first=min(times),
        last=max(times),
        rounds=len({body.binding.round for body in trained}),
        reservations=len(reserved),
        answered=len(answered & reserved.keys()),
        seeded=sum(body.seeded for body in bodies),
        steps=sum(body.steps for body in bodies),
        dp=tuple(body.dp for body in dp.values()),
        method_sha256=_distinct(body.method_sha256 for body in bodies),
        data_fingerprints=_distinct(body.binding.data_fingerprint for body in trained),
        code=_distinct(body.code for body in bodies),
        delta=_distinct(body.delta for body in bodies),
        limit_run=_distinct(body.limit_run for body in bodies),
        limit_lifetime=_distinct(body.limit_lifetime for body in bodies),
        non_private_trainings=len(plain),
        non_private_steps=sum(body.steps for _, body in plain),
        non_private_since=min((time for time, _ in plain), default=None),
    )


def _distinct(values: Iterable[_Value]) -> tuple[_Value, ...]:
    return tuple(dict.fromkeys(values))


def _kept(entries: Iterable[Entry], kind: type[Refusal | Evaluation | Officer | Tuning]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if isinstance(entry.body, kind))


def _check_policy(policy: JsonValue) -> None:
    """Refuse texts that could be a path: a bundle leaves the site."""
    if isinstance(policy, dict):
        for name, value in policy.items():
            _check_policy(name)
            _check_policy(value)
    elif isinstance(policy, list):
        for value in policy:
            _check_policy(value)
    elif isinstance(policy, str) and ("/" in policy or "\\" in policy):
        raise InputError("policy_names_a_path", "The policy holds a text with a slash: leave paths out of it.")
