"""Evidence for tests: small ledgers whose claims are right, and measurements written by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multimix.audit.attacks import Attack, MembershipResult
from multimix.audit.empirical import Bound, EmpiricalResult, NeighbourResult, Test
from multimix.audit.evidence.build import build_evidence, entries_in
from multimix.audit.evidence.records import Evidence, Keys
from multimix.audit.recompute import recompute
from multimix.audit.replay import Replayed
from multimix.contract.signing import public_text
from multimix.privacy.accountant import Price, versions
from multimix.privacy.statement import build_statement
from tests.audit.ledger_attacks import COORDINATOR, LEDGER, heads_of, written
from tests.privacy import sample_ledger as sample

AUDITOR = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
KEYS = Keys(
    ledger=public_text(LEDGER), auditor=public_text(AUDITOR), coordinator=public_text(COORDINATOR), officer=None
)
MADE = datetime(2026, 11, 9, 12, 0, tzinfo=UTC)
CODE = "0.1.0+abc"  # of the ledger's reservations
STEPS = 16
DELTA = 1e-3
NOISE, RATE, CLIP = 1.0, 0.064, 0.5


@cache
def price_of(steps: int) -> float:
    """Epsilon of so many steps, as any right accountant says to 0.02: by the auditor's recomputation."""
    body = sample.reservation(steps=steps, epsilon_run=99, epsilon_lifetime=99, epsilon_private=99)
    raw = written([body])
    return recompute(raw.split(b"\n")[:-1]).private


def price(history, /, *, delta) -> Price:
    """A fake of the trainer's accountants: one mechanism, at one delta."""
    if delta != DELTA:
        raise ValueError("only the delta of these ledgers is priced")
    epsilon = price_of(sum(history.values()))
    return Price(epsilon=epsilon, prv=epsilon, pld=epsilon, delta=delta)


def reservation(job_id="first", round_number=1, *, run=1, lifetime=1, **changes):
    """A reservation whose claims are right: `run` and `lifetime` count the reservations so far, with this one."""
    life, of_run = price_of(lifetime * STEPS), price_of(run * STEPS)
    prices = {"epsilon_run": of_run, "epsilon_lifetime": life, "epsilon_private": life, "prv": life, "pld": life}
    return sample.reservation(job_id, round_number, **(prices | {"steps": STEPS} | changes))


def bodies():
    """Two rounds of one run, both answered."""
    return [reservation(), sample.commit(1), reservation(round_number=2, run=2, lifetime=2), sample.commit(3)]


def everything():
    """Those, and every other kind of entry that costs nothing."""
    return [*bodies(), sample.evaluation(), sample.refusal(), sample.tuning()]


def statement_of(raw, **changes):
    entries = entries_in(raw)
    head = heads_of(raw, (len(entries),))[0].countersignature.head
    values = {
        "head": head,
        "countersignature": None,
        "declared_patients": 487,
        "images_per_patient": 4,
        "delta": DELTA,
        "delta_reason": "half of one in N",
        "limit_run": 4.0,
        "limit_lifetime": 8.0,
        "forecast_rounds": 12,
        "accountant_versions": versions(),
        "price": price,
    }
    return build_statement(entries, **(values | changes))


def bound(method, epsilon, delta=DELTA, **changes) -> Bound:
    claimed = price_of(2 * STEPS) if delta >= DELTA else 4.1  # at a smaller delta it is larger
    values = {"claimed_epsilon": claimed, "ceiling": 5.3, "guesses": 100, "correct": 64, "flagged": False}
    return Bound(method=method, epsilon=epsilon, delta=delta, **(values | changes))


def empirical(**changes) -> EmpiricalResult:
    bounds = (bound("steinke", 0.9, 1e-6), bound("fdp_approximate", 0.42), bound("fdp_gaussian", 0.55))
    tests = (
        measured(),
        Test(name="noise_lag_1", measured=0.002, expected=0.0, z=0.3, p_value=0.7, count=31_000, flagged=False),
    )
    values = {
        "noise_multiplier": NOISE,
        "sampling_rate": RATE,
        "clip_norm": CLIP,
        "steps": 2 * STEPS,
        "delta": DELTA,
        "claimed_epsilon": price_of(2 * STEPS),
        "canaries": 2000,
        "included": 1003,
        "seed": 7,
        "confidence": 0.95,
        "false_alarm_rate": 1e-3,
        "bounds": bounds,
        "tests": tests,
        "neighbours": NeighbourResult(patients=8, sensitivity=1.0, leakage=1e-13, tolerance=1e-6, flagged=False),
        "code": CODE,
        "seconds": 321.0,
    }
    return EmpiricalResult(**(values | changes))


def measured(name="noise", p_value=0.34, *, flagged=False) -> Test:
    return Test(name=name, measured=0.999, expected=1.0, z=-0.4, p_value=p_value, count=32_000, flagged=flagged)


def membership(auc=0.53, permitted_auc=0.92, **changes) -> MembershipResult:
    values = {
        "name": "loss threshold",
        "members": 200,
        "others": 100,
        "auc": auc,
        "auc_interval": (auc - 0.04, auc + 0.04),
        "tpr": 0.02,
        "tpr_interval": (0.005, 0.05),
        "fpr": 0.01,
        "fpr_interval": (0.0, 0.05),
        "note": "",
    }
    attack = Attack(**(values | changes))
    return MembershipResult(
        attacks=(attack,),
        epsilon=2.4,
        delta=DELTA,
        permitted_auc=permitted_auc,
        permitted_tpr=0.11,
        left_out=3,
        shadow_models=0,
        seed=1,
    )


def replayed(sequence=1, round_number=1, **changes) -> Replayed:
    same = Replayed(
        sequence=sequence,
        job_id="first",
        round=round_number,
        verdict="reproduced",
        reasons=(),
        difference=0.0,
        tolerance=1e-3,
        largest=None,
        code_then=CODE,
        code_now=CODE,
        seconds=9.0,
    )
    return replace(same, **changes)


def evidence_of(raw, **changes) -> Evidence:
    values = {"keys": KEYS, "heads": None, "statement": None, "made": MADE}
    return build_evidence(raw, **(values | changes))


def whole(raw=None, **changes) -> tuple[bytes, Evidence]:
    """A ledger, and evidence in which nothing is missing and nothing contradicts."""
    raw = written(bodies()) if raw is None else raw
    values = {
        "heads": heads_of(raw, (2, raw.count(b"\n"))),
        "statement": statement_of(raw),
        "empirical": (empirical(),),
        "membership": (membership(),),
        "replays": (replayed(1, 1), replayed(3, 2)),
        "policy": {"minimum_noise_multiplier": 0.5, "allow_non_private": False, "allowed_jobs": ["first"]},
    }
    return raw, evidence_of(raw, **(values | changes))
