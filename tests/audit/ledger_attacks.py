"""Ledgers for the auditor's tests and benchmarks, and what a thief, a vandal or the key's own holder can do to them."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy.interpolate import PchipInterpolator

from multimix.audit.verification.verify import verify_ledger
from multimix.contract.heads import HeadRecord
from multimix.contract.privacy import EMPTY_HEAD, Extension, LedgerHead, PatientPrivacy, chained, countersign
from multimix.contract.signing import public_text
from multimix.privacy.chain import Sealed, seal
from multimix.privacy.entries import Binding, Body, Commit, Entry, Evaluation, Genesis, Reservation

SITE: Final = "north"
POPULATION: Final = "adults"
LEDGER: Final = Ed25519PrivateKey.from_private_bytes(b"l" * 32)
OTHER: Final = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
COORDINATOR: Final = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
START: Final = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
FLIPS: Final = (0x01, 0x20, 0x80)
JOBS: Final = 20

# Steps of sigma 2 and q 0.01: epsilon at delta 1e-5 by both accountants of `multimix.privacy.accountant.price`.
_PRICES: Final = (
    (1, 0.0383, 0.0283), (10, 0.0756, 0.0659), (25, 0.1078, 0.0985), (62, 0.1601, 0.1514), (155, 0.2465, 0.2389),
    (387, 0.3881, 0.3813), (969, 0.6218, 0.6155), (1533, 0.7907, 0.7847), (2424, 1.008, 1.0024),
    (3834, 1.2887, 1.2834), (6063, 1.6517, 1.647), (9589, 2.1231, 2.1191), (15166, 2.7377, 2.7344),
    (23987, 3.5428, 3.5405), (37937, 4.6032, 4.6017), (60000, 6.012, 6.0069),
)  # fmt: skip
_STEPS, _BY_PRV, _BY_PLD = np.array(_PRICES).T
_PRV, _PLD = (PchipInterpolator(np.log(_STEPS), values) for values in (_BY_PRV, _BY_PLD))


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def lines_of(raw: bytes) -> list[bytes]:
    return raw.splitlines(keepends=True)


def sealed_of(raw: bytes) -> list[Sealed]:
    return [Sealed(**json.loads(line)) for line in lines_of(raw)]


def written(bodies: Sequence[Body], key: Ed25519PrivateKey = LEDGER, *, times: Sequence[datetime] = ()) -> bytes:
    """A ledger of a genesis and these bodies, sealed and chained, whatever they say; a quarter of an hour apart."""
    genesis = Genesis(site=SITE, population=POPULATION, public_key=public_text(key))
    parts, head = [], EMPTY_HEAD
    for number, body in enumerate([genesis, *bodies]):
        time = times[number] if times else START + timedelta(minutes=15 * number)
        sealed = seal(Entry(sequence=number, previous=head, time=time, body=body), key)
        head = chained(head, (sealed.digest,))
        parts.append(sealed.line)
    return "\n".join([*parts, ""]).encode()


def written_by_hand(documents: Sequence[dict[str, Any]], key: Ed25519PrivateKey = LEDGER) -> bytes:
    """Any documents at all, in the right spelling and with right signatures."""
    texts = [json.dumps(document, sort_keys=True, separators=(",", ":")) for document in documents]
    return b"".join(signed_line(text, key) for text in texts)


def signed_line(document: str, key: Ed25519PrivateKey = LEDGER) -> bytes:
    return Sealed(document, base64.b64encode(key.sign(document.encode())).decode()).line.encode() + b"\n"


def documents_of(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(sealed.document) for sealed in sealed_of(raw)]


def signed_again(raw: bytes, key: Ed25519PrivateKey, edit: Callable[[list[dict[str, Any]]], None]) -> bytes:
    """The whole history written anew after an edit: numbers, hashes and signatures all fit."""
    documents = documents_of(raw)
    edit(documents)
    parts, head = [], EMPTY_HEAD
    for number, document in enumerate(documents):
        entry = Entry.model_validate(document | {"sequence": number, "previous": head})
        sealed = seal(entry, key)
        head = chained(head, (sealed.digest,))
        parts.append(sealed.line)
    return "\n".join([*parts, ""]).encode()


def heads_of(
    raw: bytes,
    lengths: Sequence[int],
    *,
    site: str = SITE,
    key: str | None = None,
    coordinator: Ed25519PrivateKey = COORDINATOR,
) -> tuple[HeadRecord, ...]:
    """What the server keeps after it was shown a ledger at these lengths, rising."""
    digests = [sealed.digest for sealed in sealed_of(raw)]
    records = []
    for number, (since, length) in enumerate(pairwise((0, *lengths)), 1):
        heads = [LedgerHead(length=at, sha256=chained(EMPTY_HEAD, digests[:at])) for at in (since, length)]
        new = tuple(digests[since:length])
        grown = Extension(public_key=key or public_text(LEDGER), since=heads[0], digests=new, head=heads[1])
        signature = countersign(site, grown, coordinator)
        time = START + timedelta(days=number)
        records.append(HeadRecord(time=time, job_id="first", round=number, digests=new, countersignature=signature))
    return tuple(records)


def flips_detected_fraction(raw: bytes, key: str) -> float:
    """Of all flips of a single byte, the share after which a violation names the entry that the byte belongs to."""
    verified = partial(verify_ledger, key=key, heads=None, coordinator_key=None, officer_key=None)
    found = [any(each.entry == entry for each in verified(bad).violations) for entry, bad in _flipped(raw)]
    return sum(found) / len(found)


def _flipped(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each entry's number and the ledger with one of its bytes changed; a line's end belongs to it."""
    entry = 0
    for position, byte in enumerate(raw):
        for flip in FLIPS:
            yield entry, raw[:position] + bytes([byte ^ flip]) + raw[position + 1 :]
        entry += byte == ord("\n")


def big_ledger(entries: int) -> tuple[bytes, str]:
    """A ledger of so many entries, and its public key: 20 jobs of reservations and commits, evaluations between.

    One mechanism (sigma 2, q 0.01, a step a reservation). Its claims are the accountants' at delta 1e-5, to 0.005, up
    to 60,000 reservations.
    """
    return written(list(_many(entries - 1))), public_text(LEDGER)


def _many(count: int) -> Iterator[Body]:
    rounds = count // (2 * JOBS) + 1
    steps = np.log(np.arange(1, count // 2 + 2))
    prices = list(zip(_PRV(steps).tolist(), _PLD(steps).tolist(), strict=True))
    number = 0
    while number < count:
        order = number // 2
        job, round_number = f"job-{order // rounds}", order % rounds + 1
        body = _reservation(job, round_number, rounds, run=prices[round_number - 1], life=prices[order])
        number += 1
        yield body
        if number >= count:
            return
        number += 1
        last = round_number % 50 == 0
        yield (
            Evaluation(binding=body.binding, split="validation", minimum_cohort=20)
            if last
            else Commit(reservation=number - 1, reply_sha256=sha(f"reply {number}"))
        )


def _reservation(
    job: str, round_number: int, rounds: int, *, run: tuple[float, float], life: tuple[float, float]
) -> Reservation:
    """`run` and `life` are the two accountants' epsilons."""
    name = f"{job} {round_number}"
    binding = Binding(
        job_id=job,
        round=round_number,
        plan_sha256=sha(f"plan {name}"),
        weights_sha256=sha(f"weights {name}"),
        data_fingerprint="gen-1-4711",
    )
    return Reservation(
        binding=binding,
        commitment=sha(f"secret {name}"),
        dp=_dp(rounds),
        steps=1,
        total_steps=rounds,
        epsilon_run=max(run),
        epsilon_lifetime=max(life),
        epsilon_private=max(life),
        prv=life[0],
        pld=life[1],
        limit_run=4.0,
        limit_lifetime=12.0,
        delta=1e-5,
        code="0.1.0+abc",
        method_sha256=sha("method"),
    )


@cache
def _dp(rounds: int) -> PatientPrivacy:
    return PatientPrivacy(
        noise_multiplier=2.0,
        clip_norm=0.5,
        sampling_rate=0.01,
        declared_patients=30_000,
        images_per_patient=4,
        delta=1e-5,
        modules=("encoder", "classifier"),
        module_weights={"encoder": 0.2, "classifier": 0.2},
        rounds=rounds,
        epsilon=4.0,
    )
