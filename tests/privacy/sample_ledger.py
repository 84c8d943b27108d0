"""A ledger written by hand, for tests: entries in their places, chained by any hash, unsigned."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multimix.contract.privacy import EMPTY_HEAD, Countersignature, Extension, LedgerHead, PatientPrivacy, countersign
from multimix.privacy.entries import (
    Binding,
    Body,
    Commit,
    Entry,
    Evaluation,
    Genesis,
    NonPrivate,
    Officer,
    Refusal,
    Reservation,
    Tuning,
)

SITE = "north"
LEDGER_KEY = base64.b64encode(b"l" * 32).decode()
COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
COORDINATOR_KEY = base64.b64encode(COORDINATOR.public_key().public_bytes_raw()).decode()
START = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def binding(job_id: str = "first", round_number: int = 1, fingerprint: str = "gen-1-4711") -> Binding:
    return Binding(
        job_id=job_id,
        round=round_number,
        plan_sha256=sha(f"plan {job_id} {round_number}"),
        weights_sha256=sha(f"weights {job_id} {round_number}"),
        data_fingerprint=fingerprint,
    )


def patient_privacy(**changes: Any) -> PatientPrivacy:
    values = {
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "sampling_rate": 0.064,
        "declared_patients": 500,
        "images_per_patient": 4,
        "delta": 1e-3,
        "modules": ("encoder", "classifier"),
        "module_weights": {"encoder": 0.2, "classifier": 0.2},
        "rounds": 10,
        "epsilon": 4.0,
    }
    return PatientPrivacy(**(values | changes))


def reservation(job_id: str = "first", round_number: int = 1, **changes: Any) -> Reservation:
    values = {
        "binding": binding(job_id, round_number),
        "commitment": sha(f"secret {job_id} {round_number}"),
        "dp": patient_privacy(),
        "steps": 16,
        "total_steps": 160,
        "epsilon_run": 1.0,
        "epsilon_lifetime": 1.0,
        "epsilon_private": 1.0,
        "prv": 1.0,
        "pld": 0.99,
        "limit_run": 4.0,
        "limit_lifetime": 8.0,
        "delta": 1e-3,
        "code": "0.1.0+abc",
        "method_sha256": sha("method"),
    }
    return Reservation(**(values | changes))


def commit(sequence: int) -> Commit:
    return Commit(reservation=sequence, reply_sha256=sha(f"reply {sequence}"))


def non_private(job_id: str = "plain", round_number: int = 1, steps: int = 10) -> NonPrivate:
    return NonPrivate(binding=binding(job_id, round_number), steps=steps)


def evaluation(job_id: str = "first", round_number: int = 1) -> Evaluation:
    return Evaluation(binding=binding(job_id, round_number), split="validation", minimum_cohort=20)


def refusal(job_id: str = "greedy", reason: str = "budget_run_exceeded") -> Refusal:
    return Refusal(job_id=job_id, round=1, plan_sha256=sha("greedy plan"), reason=reason)


def officer(text: str = "agreed with the ethics board", action: str = "note") -> Officer:
    return Officer(action=action, text=text, officer_key=LEDGER_KEY, signature="AA==")


def tuning(text: str = "learning rate, on phantoms") -> Tuning:
    return Tuning(runs=12, private=False, text=text)


def ledger(bodies: Sequence[Body]) -> tuple[Entry, ...]:
    """A genesis and these bodies, a quarter of an hour apart."""
    all_bodies = (Genesis(site=SITE, population="adults", public_key=LEDGER_KEY), *bodies)
    entries: list[Entry] = []
    head = EMPTY_HEAD
    for number, body in enumerate(all_bodies):
        entry = Entry(sequence=number, previous=head, time=START + timedelta(minutes=15 * number), body=body)
        entries.append(entry)
        head = sha(head + entry.model_dump_json())
    return tuple(entries)


def head_of(entries: Sequence[Entry]) -> LedgerHead:
    last = entries[-1]
    return LedgerHead(length=len(entries), sha256=sha(last.previous + last.model_dump_json()))


def countersigned(head: LedgerHead, site: str = SITE, key: Ed25519PrivateKey = COORDINATOR) -> Countersignature:
    return countersign(site, Extension(public_key=LEDGER_KEY, since=head, digests=(), head=head), key)
