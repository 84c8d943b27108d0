"""Run as a program: a site that answers round after round, to be killed at any moment and started again.

    python -m tests.privacy.killable_site LEDGER LOGS FINGERPRINT

Beside the ledger it keeps two flushed logs, as an observer would who sees the pixels being read and the wire:
`executions.log` before it trains, `sent.log` with what it sends. Its "training" gives other bytes each time, so that
two answers for one reservation would show. It begins with the round it sent last: a retry.
"""

import hashlib
import json
import os
import sys
import time
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multimix.contract.privacy import countersign
from multimix.privacy.entries import Binding
from multimix.privacy.ledger import Ledger, open_ledger
from multimix.privacy.noise import commitment
from multimix.privacy.reservations import Reservations, Stage
from tests.privacy import sample_ledger as sample

POPULATION = "adults"
EXECUTIONS, SENT = "executions.log", "sent.log"
STEPS = 16
COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
PAUSE_S = 0.002


def main(folder: Path, logs: Path, fingerprint: str) -> None:
    first = max((line["round"] for line in log_lines(logs / SENT)), default=1)
    kept = Reservations(folder)
    for round_number in count(first):
        with open_ledger(folder, site=sample.SITE, population=POPULATION) as ledger:
            if round_number == first:
                print("ready", flush=True)
            binding = sample.binding("job", round_number, fingerprint)
            sequence, data = answer(ledger, kept, binding, logs)
            time.sleep(PAUSE_S)
            log(logs / SENT, round=round_number, sequence=sequence, sha256=hashlib.sha256(data).hexdigest())
            seen = countersign(sample.SITE, ledger.extension(None), COORDINATOR)
            ledger.keep_countersignature(seen, COORDINATOR.public_key())


def answer(ledger: Ledger, kept: Reservations, binding: Binding, logs: Path) -> tuple[int, bytes]:
    found = kept.find(ledger, binding, dp=sample.patient_privacy(), steps=STEPS)
    if found.stage in (Stage.COMMITTED, Stage.REPLIED):
        return found.sequence, kept.stored_reply(ledger, found.sequence)
    if found.stage is Stage.RESERVED:
        sequence, secret = found.sequence, kept.secret_of(found.reservation)
    else:
        entry, secret = kept.reserve(
            ledger, lambda promised: sample.reservation(binding=binding, commitment=promised, steps=STEPS)
        )
        sequence = entry.sequence
    time.sleep(PAUSE_S)
    return sequence, kept.keep_reply(ledger, sequence, train(secret, binding, logs))


def train(secret: bytes, binding: Binding, logs: Path) -> bytes:
    """Weights that depend on secret and binding, and are never the same twice."""
    bound = binding.model_dump_json()
    log(logs / EXECUTIONS, commitment=commitment(secret), binding=bound)
    time.sleep(2 * PAUSE_S)
    return hashlib.sha256(secret + bound.encode()).digest() + os.urandom(2000)


def log(path: Path, **fields: object) -> None:
    """Append a line and see it on disk; it begins with an end of line, for the one before may have been cut."""
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(fields).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def log_lines(path: Path) -> list[dict]:
    """The whole lines of a log."""
    raw = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith(b"}\n")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
