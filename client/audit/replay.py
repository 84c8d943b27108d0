"""Replay: one whole private round, executed again with the auditor's own copy of this software.

From the order and the weights that the site kept, the generation of the images that the reservation names, and the
secret that the ledger committed to, the release is computed again and held against the reply whose hash is in the
ledger. Everything that can be checked on its own is checked, and every fault is a reason of its own: an order that the
coordinator did not sign, a ledger entry that says less than was ordered, a reply that tells more than noised weights.
`multimix.audit.replay` says what a difference means.

What it cannot show: that the committed reply is the one that was sent, which only the coordinator knows; that the
pixels are the patients'; and, before the server has countersigned an entry, that it was written before the training.

Run it with the version of the software that the ledger names: another may round, or write a reply, differently.
"""

import base64
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.audit.sites import AuditedSite, Images, kept_order, plan_of, real_site, simulated_site
from client.envelopes import pack, unpack
from client.settings import SiteFolder
from client.site import private_data
from multimix.audit.replay import TOLERANCE, Compared, Replayed, checked_tolerance, compare, verdict_of
from multimix.batches import TrainingData
from multimix.config import MethodConfig
from multimix.contract.messages import (
    LocalWork,
    RoundPlan,
    TrainReport,
    Weights,
    canonical_json,
    sha256_text,
    weights_sha256,
)
from multimix.contract.privacy import PatientPrivacy
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import SignedPlan
from multimix.contract.site import Trained
from multimix.data.cache import Progress
from multimix.errors import Refused, SiteError
from multimix.network import MultiMixNetwork
from multimix.privacy.entries import Commit, Entry, NonPrivate, Officer, Reservation
from multimix.privacy.officer import signed_by_officer
from multimix.privacy.reservations import Reservations
from multimix.privacy.training import train_privately
from multimix.training import resolve_device
from multimix.version import code_version
from multimix.weights import load_into

log = logging.getLogger("multimix.audit")

_T = TypeVar("_T")


class Train(Protocol):
    """`train_privately`, or what stands in its place to see how far another trainer's release lies away."""

    def __call__(
        self,
        network: MultiMixNetwork,
        data: TrainingData,
        method: MethodConfig,
        work: LocalWork,
        dp: PatientPrivacy,
        *,
        secret: bytes,
        progress: Callable[[int], None] | None = None,
    ) -> Weights:
        """Return the arrays to release."""
        ...


def replay(
    site: AuditedSite,
    entries: Iterable[Entry],
    sequence: int,
    *,
    tolerance: float = TOLERANCE,
    device: str = "auto",
    progress: Progress | None = None,
    train: Train = train_privately,
) -> Replayed:
    """Execute a round again and judge it. Patients' images are read; nothing is written.

    Args:
        site: Where it was trained.
        entries: Of the site's ledger, verified by whoever read them.
        sequence: Of the entry that reserved the round.
        tolerance: 0 to 0.1, of the update's norm; 0 on the machine that trained. See `multimix.audit.replay`.
        device: To train on: auto, cpu or cuda.
        progress: Called with the steps done, and of how many.
        train: The trainer to replay with.

    Raises:
        SiteError: `reservation_unknown`.
        InputError: `tolerance`, `device_missing`.
    """
    started = time.perf_counter()
    checked_tolerance(tolerance)
    trainer = _Trainer(str(resolve_device(device)), progress, train)
    entered, faults = _round(tuple(entries), sequence, site), _Faults()
    body = entered.body
    compared = _judged(faults, site, entered, trainer, tolerance)
    if not faults.reasons and compared.difference is None:
        faults.note("replay_failed")  # what was not compared is not reproduced
    return Replayed(
        sequence=sequence,
        job_id=body.binding.job_id,
        round=body.binding.round,
        verdict=verdict_of(faults.reasons),
        reasons=tuple(faults.reasons),
        difference=compared.difference,
        tolerance=tolerance,
        largest=compared.largest,
        code_then="" if isinstance(body, NonPrivate) else body.code,
        code_now=code_version(),
        seconds=time.perf_counter() - started,
    )


def replay_site(
    folder: SiteFolder,
    sequence: int,
    *,
    coordinator: Ed25519PublicKey | None = None,
    tolerance: float = TOLERANCE,
    device: str = "auto",
    progress: Progress | None = None,
) -> Replayed:
    """Replay a round of a hospital's site; raises as `real_site`, `read_ledger` and `replay`."""
    site = real_site(folder, coordinator)
    entries = site.read_ledger().entries
    return replay(site, entries, sequence, tolerance=tolerance, device=device, progress=progress)


def replay_simulated(
    config: RunConfig,
    job_id: str,
    name: str,
    sequence: int,
    *,
    tolerance: float = TOLERANCE,
    device: str = "auto",
    progress: Progress | None = None,
) -> Replayed:
    """Replay a round of a simulated site; raises as `simulated_site`, `read_ledger` and `replay`."""
    site = simulated_site(config, job_id, name)
    entries = site.read_ledger().entries
    return replay(site, entries, sequence, tolerance=tolerance, device=device, progress=progress)


@dataclass(frozen=True)
class _Trainer:
    """How to train again."""

    device: str
    progress: Progress | None
    train: Train

    def release(self, plan: RoundPlan, weights: Weights, images: Images, secret: bytes) -> Weights:
        """Return what the round releases; Refused as the site itself would have."""
        hospital, store = images
        work, dp, progress = plan.work, plan.dp, self.progress
        if work is None or dp is None:
            raise Refused("ledger_entry_differs")
        if plan.method.network.image_size != store.image_size:
            raise Refused("image_size")
        if any(array.dtype != np.float32 for array in weights.values()):
            raise Refused("weights_type")
        try:
            network = load_into(MultiMixNetwork(plan.method.network), weights).to(self.device)
        except ValueError:
            raise Refused("weights_shape") from None
        steps = work.steps
        return self.train(
            network,
            private_data(hospital, store, plan),
            plan.method,
            work,
            dp,
            secret=secret,
            progress=None if progress is None else lambda done: progress(done, steps),
        )


@dataclass(frozen=True)
class _Faults:
    """The reasons found so far; where one part cannot be read, the checks that do not need it go on."""

    reasons: list[str] = field(default_factory=list)

    def note(self, reason: str) -> None:
        if reason and reason not in self.reasons:
            self.reasons.append(reason)

    def tried(self, read: Callable[[], _T], otherwise: str = "replay_failed") -> _T | None:
        """Return what is read, or note why it cannot be: the refusal's reason, `otherwise` of any other error."""
        try:
            return read()
        except Refused as refused:
            self.note(refused.reason)
        except Exception as error:  # noqa: BLE001  (damaged files raise anything, in words that may tell of patients)
            log.error("%s: %s", otherwise, type(error).__name__)  # noqa: TRY400
            self.note(otherwise)
        return None


@dataclass(frozen=True)
class _Round:
    """What the ledger says of a round: its entry, and the commit of its reply if there is one."""

    sequence: int
    body: Reservation | NonPrivate
    commit: Commit | None
    purged: bool  # the officer signed a purge after it

    def removed(self, reasons: Iterable[str]) -> bool:
        """Whether something is gone that nobody decided to remove."""
        return not self.purged and bool({"order_missing", "secret_missing", "reply_purged"}.intersection(reasons))


def _judged(faults: _Faults, site: AuditedSite, entered: _Round, trainer: _Trainer, tolerance: float) -> Compared:
    """Note every fault of a round, and compare the weights where all that this takes is there."""
    reservation, kept = entered.body, site.kept
    if isinstance(reservation, NonPrivate):
        faults.note("non_private")
        return Compared()
    order = faults.tried(lambda: kept_order(kept, reservation.binding), "order_damaged")
    plan = faults.tried(lambda: plan_of(order[0])) if order else None
    if order and site.coordinator and not _signed(order[0], site.coordinator):
        faults.note("plan_signature")
    if plan and not _as_entered(plan, reservation):
        faults.note("ledger_entry_differs")
    secret = faults.tried(lambda: kept.secret_of(reservation))
    images = faults.tried(lambda: site.pinned(reservation.binding.data_fingerprint))
    reply = faults.tried(lambda: _reply(kept, entered.sequence, reservation, entered.commit), "reply_damaged")
    if reply and entered.commit:
        steps = plan.work.steps if plan and plan.work else reservation.steps
        if reply.report != _all_it_may_say(site.name, reservation, steps, reply.weights):
            faults.note("released_beyond_the_ledger")
        if _sha256(pack(reply)) != entered.commit.reply_sha256:
            faults.note("reply_not_canonical")  # spaces, array metadata: room for words
    if entered.removed(faults.reasons):
        faults.note("removed_without_decision")
    if order is None or plan is None or secret is None or images is None or reply is None:
        return Compared()
    recomputed = faults.tried(lambda: trainer.release(plan, order[1], images, secret))
    if recomputed is None:
        return Compared()
    compared = compare(order[1], reply.weights, recomputed, tolerance=tolerance)
    faults.note(compared.reason)
    return compared


def _round(entries: tuple[Entry, ...], sequence: int, site: AuditedSite) -> _Round:
    body = entries[sequence].body if 0 <= sequence < len(entries) else None
    if not isinstance(body, Reservation | NonPrivate):
        raise SiteError("reservation_unknown", f"Entry {sequence} of the ledger is not that of a round of training.")
    later = entries[sequence + 1 :]
    commits = (each.body for each in later if isinstance(each.body, Commit) and each.body.reservation == sequence)
    return _Round(sequence, body, next(commits, None), any(_purge(entry, site) for entry in later))


def _purge(entry: Entry, site: AuditedSite) -> bool:
    """Whether the officer, whose key the auditor or `site.toml` names, had secrets removed."""
    if not isinstance(entry.body, Officer) or entry.body.action != "secrets_purged":
        return False
    population = site.population
    return signed_by_officer(entry, site.name, population.name, population.officer_key)


def _signed(signed: SignedPlan, key: Ed25519PublicKey) -> bool:
    """Whether the coordinator signed it, whatever it says."""
    try:
        key.verify(base64.b64decode(signed.signature, validate=True), signed.document.encode())
    except (InvalidSignature, ValueError, TypeError):  # the file may hold anything in place of text
        return False
    return True


def _as_entered(plan: RoundPlan, reservation: Reservation) -> bool:
    """Whether the ledger priced what was ordered."""
    binding, work = reservation.binding, plan.work
    ordered = (plan.kind, plan.job_id, plan.round, plan.weights_sha256, plan.dp, work.steps if work else None)
    entered = ("train", binding.job_id, binding.round, binding.weights_sha256, reservation.dp, reservation.steps)
    return ordered == entered and sha256_text(canonical_json(plan.method)) == reservation.method_sha256


def _reply(kept: Reservations, sequence: int, reservation: Reservation, commit: Commit | None) -> Trained:
    """Return the reply that was committed; Refused `not_committed`, `reply_purged`, `reply_damaged`."""
    if commit is None:
        raise Refused("not_committed")
    data = kept.reply_bytes(sequence, reservation)
    if _sha256(data) != commit.reply_sha256:
        raise Refused("reply_damaged")
    return unpack(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _all_it_may_say(site: str, reservation: Reservation, steps: int, sent: Weights) -> TrainReport:
    """Return the report of `client.site.private_report`, from the ledger: the order may be gone."""
    binding = reservation.binding
    return TrainReport(
        site=site,
        job_id=binding.job_id,
        round=binding.round,
        plan_sha256=binding.plan_sha256,
        weights_sha256=weights_sha256(sent),
        steps=steps,
        teachers={},
        losses={},
    )
