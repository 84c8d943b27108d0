"""The audit: the time of a ledger of 100,000 entries and of an empirical audit; whether a changed byte can hide."""

import tempfile
import time

from multimix.audit.empirical import audit
from multimix.audit.observation import Subject
from multimix.audit.recompute import recompute
from multimix.audit.verification.verify import verify_ledger
from multimix.batches import TrainingData
from multimix.config import preset
from multimix.contract.privacy import PatientPrivacy
from multimix.contract.run_config import RunConfig
from multimix.data.simulation import simulated_hospitals
from multimix.network import new_network
from multimix.privacy.accountant import default_delta
from multimix.privacy.training import train_privately
from tests.audit.ledger_attacks import big_ledger, flips_detected_fraction

ENTRIES = 100_000
CANARIES = 2000
PATIENTS = 200
STEPS = 16
SIZE = 64


def verify_s_100k() -> float:
    """Return the seconds that verifying and recomputing 100,000 entries take together."""
    raw, key = big_ledger(ENTRIES)
    started = time.perf_counter()
    verified = verify_ledger(raw, key=key, heads=None, coordinator_key=None, officer_key=None)
    recomputed = recompute(raw.split(b"\n")[:-1])
    seconds = time.perf_counter() - started
    if verified.violations or verified.entries != ENTRIES or not recomputed.agrees:
        raise RuntimeError("an honest ledger was doubted")
    return seconds


def flips_fraction() -> float:
    """Return the share of all single-byte changes of a small ledger that are reported with their entry."""
    raw, key = big_ledger(4)
    return flips_detected_fraction(raw, key)


def empirical_s() -> float:
    """Return the seconds of an audit with 2,000 canaries at a site of 200 training patients, 64 px, all modules."""
    method = preset("private", image_size=SIZE)
    dp = _privacy()
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(image_size=SIZE, phantom_hospitals=1, phantom_patients=PATIENTS * 10 // 7, cache=folder)
        (hospital, *_) = simulated_hospitals(config, nodes=1)
        store = hospital.store()
        data = TrainingData(hospital.name, store, hospital.pools(store))
        subject = Subject(train_privately, lambda: new_network(method.network, 0), data, method, dp, STEPS)
        started = time.perf_counter()
        found = audit(
            subject, claim=lambda _delta: 8.0, delta=dp.delta, canaries=CANARIES, patients=6, seed=0, code="benchmark"
        )
        seconds = time.perf_counter() - started
    if found.flags:
        raise RuntimeError("a correct trainer was flagged")
    return seconds


def _privacy() -> PatientPrivacy:
    return PatientPrivacy(
        noise_multiplier=1.114,
        clip_norm=1.0,
        sampling_rate=0.5,
        declared_patients=PATIENTS,
        images_per_patient=2,
        delta=default_delta(PATIENTS),
        modules=("encoder", "classifier", "decoder"),
        module_weights={"encoder": 1.0, "classifier": 1.0, "decoder": 1.0},
        rounds=4,
        epsilon=8.0,
    )


def figures() -> dict[str, float]:
    """Return all figures of the audit."""
    return {
        "audit_verify_s_100k": verify_s_100k(),
        "audit_flips_detected_fraction": flips_fraction(),
        "audit_empirical_s_2000_64px": empirical_s(),
    }
