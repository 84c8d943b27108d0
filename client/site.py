"""One round at a hospital, in process: images, torch and policy stay on this side of `Site`."""

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.books import Books, Order, check_evaluation
from client.card import Declared, card_for
from client.envelopes import pack, pack_order, unpack
from client.policy import SitePolicy, check, check_population
from client.replays import Replays
from multimix.batches import TrainingData
from multimix.contract.messages import (
    EvaluateReport,
    Picture,
    RoundPlan,
    SiteCard,
    TrainReport,
    Weights,
    private_arrays,
    taught_arrays,
    weights_sha256,
)
from multimix.contract.privacy import Extension
from multimix.contract.signing import SignedPlan, verified
from multimix.contract.site import Evaluated, Trained
from multimix.contract.suppression import suppress as suppress_small_cells
from multimix.data.hospitals import Hospital
from multimix.data.sampling import Pools, patients
from multimix.data.store import Store
from multimix.errors import InputError, Refused
from multimix.evaluation import ModelTime, evaluate
from multimix.network import CLASSES, MultiMixNetwork
from multimix.privacy.entries import Binding
from multimix.privacy.training import train_privately
from multimix.samples import sample_pictures
from multimix.training import resolve_device, train
from multimix.weights import export, load_into

log = logging.getLogger("multimix.client")

Progress = Callable[[int], None]


@dataclass
class LocalSite:
    """A hospital whose images lie on this machine; see `multimix.contract.site.Site`."""

    hospital: Hospital
    policy: SitePolicy
    coordinator: Ed25519PublicKey
    device: str = "auto"
    synthetic: bool = False
    books_of: Callable[[RoundPlan], Books] | None = None  # a laboratory's public images need none
    declared: Declared | None = None  # what a private site says of itself, in place of counts
    _replays: Replays = field(default_factory=Replays)

    @cached_property
    def store(self) -> Store:
        """The decoded images; opened once and kept warm between rounds."""
        return self.hospital.store()

    def describe(self) -> SiteCard:
        """Say what policy lets the site say: declared numbers, or counts with small cells suppressed."""
        device = str(self._torch_device())
        return card_for(
            self.hospital,
            self.store,
            self.policy,
            declared=self.declared,
            device=device,
            synthetic=self.synthetic,
        )

    def train(self, signed: SignedPlan, weights: Weights, *, progress: Progress | None = None) -> Trained:
        """Train for one round. Refuses before a pixel is read; a diverged model or an untaught module is never sent.

        `progress` is told how many steps are done; a `Refused` that it raises ends the round there.
        """
        plan = self._verified(signed, kind="train")
        with self._refusals_entered(plan, signed):
            network = self._admitted(plan, signed, weights)
            if self.hospital.role == "held-out":
                raise Refused("site_held_out")
            if plan.dp is not None:
                return self._train_privately(plan, signed, network, pack_order(signed, weights), progress)
            if self.books_of is not None:
                books = self.books_of(plan)
                with books.opened(signed.countersigned, self.coordinator) as ledger:
                    order = self._order(plan, signed)
                    if self._may_evaluate(plan):
                        check_evaluation(ledger.entries, order)  # before training is entered
                    books.enter_non_private(ledger, order)
                    if self._may_evaluate(plan):
                        books.enter_evaluation(ledger, order, self.policy.minimum_cohort)
                    trained = self._train_openly(plan, signed, network, progress)
                    extension = books.extension(ledger, signed.countersigned)
                return replace(trained, report=trained.report.model_copy(update={"ledger": extension}))
            return self._train_openly(plan, signed, network, progress)

    def _train_privately(
        self, plan: RoundPlan, signed: SignedPlan, network: MultiMixNetwork, packed: bytes, progress: Progress | None
    ) -> Trained:
        """Answer with noised weights and the ledger's head, nothing else; the same bytes however often asked."""
        dp, work = plan.dp, plan.work
        if self.books_of is None:
            raise Refused("ledger_missing")
        if dp is None or work is None:
            raise Refused("plan_incomplete")
        books = self.books_of(plan)
        check_population(dp, books.population)
        if not private_arrays(export(network), dp):
            raise Refused("nothing_taught")  # here, before anything is reserved for it

        def train(secret: bytes) -> bytes:
            data = private_data(self.hospital, self.store, plan)
            sent = train_privately(network, data, plan.method, work, dp, secret=secret, progress=progress)
            _check_finite(sent)
            return pack(Trained(private_report(self.hospital.name, plan, signed, sent), sent))

        with books.opened(signed.countersigned, self.coordinator) as ledger:
            trained = unpack(books.answer(ledger, self._order(plan, signed, packed), train))
            extension = books.extension(ledger, signed.countersigned)
        return replace(trained, report=trained.report.model_copy(update={"ledger": extension}))

    def _train_openly(
        self, plan: RoundPlan, signed: SignedPlan, network: MultiMixNetwork, progress: Progress | None
    ) -> Trained:
        """Train without differential privacy."""
        if plan.work is None:
            raise Refused("plan_incomplete")
        started = time.perf_counter()
        evaluation = self._evaluation(plan, signed, network) if self._may_evaluate(plan) else None
        evaluated = time.perf_counter()
        data = self._training_data(plan)
        outcome = train(network, data, plan.method, plan.work, seed=plan.seed, progress=progress)
        trained = export(network)
        _check_finite(trained)
        sent = taught_arrays(trained, outcome.teachers)
        report = TrainReport(
            site=self.hospital.name,
            job_id=plan.job_id,
            round=plan.round,
            plan_sha256=signed.sha256,
            weights_sha256=weights_sha256(sent),
            steps=plan.work.steps,
            teachers=outcome.teachers,
            losses=outcome.losses,
            pseudo_label_rate=outcome.pseudo_label_rate,
            seconds={
                "evaluation": evaluated - started,
                "evaluation_model": evaluation.seconds["evaluation_model"] if evaluation else 0.0,
                "data": outcome.data_s,
                "step": outcome.step_s,
                "total": time.perf_counter() - started,
            },
            evaluation=evaluation,
        )
        return Trained(report, sent)

    def evaluate(self, signed: SignedPlan, weights: Weights) -> Evaluated:
        """Score the weights given; pictures only as many as policy releases."""
        plan = self._verified(signed, kind="evaluate")
        with self._refusals_entered(plan, signed):
            network = self._admitted(plan, signed, weights)
            extension = self._evaluation_entered(plan, signed) if self.books_of else None
            return self._evaluated(plan, signed, network, extension)

    def _evaluated(
        self, plan: RoundPlan, signed: SignedPlan, network: MultiMixNetwork, extension: Extension | None
    ) -> Evaluated:
        report = self._evaluation(plan, signed, network).model_copy(update={"ledger": extension})
        count = min(plan.pictures, self.policy.pictures)
        pictures: tuple[Picture, ...] = ()
        if count:
            rows = self.hospital.evaluation_rows(self.store, report.split)
            pictures = sample_pictures(network, self.store, rows, count=count)
        return Evaluated(report, pictures)

    def _verified(self, signed: SignedPlan, *, kind: str) -> RoundPlan:
        plan = verified(signed, self.coordinator)
        if plan.kind != kind:
            raise Refused("plan_malformed", f"a plan to {plan.kind} sent as an order to {kind}")
        return plan

    def _admitted(self, plan: RoundPlan, signed: SignedPlan, weights: Weights) -> MultiMixNetwork:
        """Check policy, binding to the weights and replay; return the network with these weights."""
        check(plan, self.policy)
        if plan.method.network.image_size != self.store.image_size:
            raise Refused("image_size", f"asked {plan.method.network.image_size} px, stored {self.store.image_size} px")
        if weights_sha256(weights) != plan.weights_sha256:
            raise Refused("weights_hash")
        if any(value.dtype != np.float32 for value in weights.values()):
            raise Refused("weights_type")
        device, network = self._torch_device(), MultiMixNetwork(plan.method.network)
        try:
            load_into(network, weights)
        except ValueError:
            raise Refused("weights_shape") from None
        if self.books_of is None:  # a ledger remembers, for good
            self._replays.admit(plan, signed.sha256)
        return network.to(device)

    def _order(self, plan: RoundPlan, signed: SignedPlan, packed: bytes = b"") -> Order:
        binding = Binding(
            job_id=plan.job_id,
            round=plan.round,
            plan_sha256=signed.sha256,
            weights_sha256=plan.weights_sha256,
            data_fingerprint=self.store.fingerprint,
        )
        return Order(plan, binding, packed)

    @contextmanager
    def _refusals_entered(self, plan: RoundPlan, signed: SignedPlan) -> Iterator[None]:
        """Enter the refusal of a signed plan in the ledger, where there is one that can be written.

        At a site with books any other error is the refusal `training_failed` or `evaluation_failed`: its text, and
        which error it was, may tell of patients.
        """
        try:
            yield
        except Refused as refused:
            self._enter_refusal(plan, signed, refused.reason)
            raise
        except Exception as error:
            if self.books_of is None:
                raise
            reason = "training_failed" if plan.kind == "train" else "evaluation_failed"
            log.error("%s: %s at %s", reason, type(error).__name__, _place(error))  # noqa: TRY400
            self._enter_refusal(plan, signed, reason)
            raise Refused(reason) from None

    def _enter_refusal(self, plan: RoundPlan, signed: SignedPlan, reason: str) -> None:
        if self.books_of is None or reason.startswith(("ledger_", "countersignature_")):
            return
        with suppress(Exception):  # the refusal goes out, whatever keeps it from being entered
            books = self.books_of(plan)
            with books.opened_to_refuse() as ledger:
                books.enter_refusal(ledger, plan, signed.sha256, reason)

    def _evaluation_entered(self, plan: RoundPlan, signed: SignedPlan) -> Extension | None:
        """Enter that exact figures of patients held back from training are about to leave."""
        if self.books_of is None:
            return None
        books = self.books_of(plan)
        with books.opened(signed.countersigned, self.coordinator) as ledger:
            books.enter_evaluation(ledger, self._order(plan, signed), self.policy.minimum_cohort)
            return books.extension(ledger, signed.countersigned)

    def _torch_device(self) -> torch.device:
        try:
            return resolve_device(self.device)
        except InputError:
            raise Refused("device_unavailable") from None

    def _training_data(self, plan: RoundPlan) -> TrainingData:
        """Decide what each image may teach under this plan."""
        pools = self.hospital.pools(self.store, plan.mask_convention)
        rows = pools.labelled_classification
        counts = [patients(self.store, rows[self.store.label[rows] == i]) for i in range(len(CLASSES))]
        log_prior = (0.0, 0.0)
        if min(counts) < plan.minimum_class_patients:
            if plan.one_class_sites == "exclude":
                pools = _without_labels(pools)
            elif plan.one_class_sites == "logit_adjusted":
                total = sum(counts) + len(counts)
                log_prior = (math.log((counts[0] + 1) / total), math.log((counts[1] + 1) / total))
        if not len(_training_rows(pools)):
            raise Refused("no_training_images")
        return TrainingData(self.hospital.name, self.store, pools, log_prior)

    def _may_evaluate(self, plan: RoundPlan) -> bool:
        return plan.evaluate_on != "none" and self.policy.release_evaluation

    def _evaluation(self, plan: RoundPlan, signed: SignedPlan, network: MultiMixNetwork) -> EvaluateReport:
        if plan.evaluate_on == "none":
            raise Refused("plan_incomplete")
        started = time.perf_counter()
        rows = self.hospital.evaluation_rows(self.store, plan.evaluate_on)
        side = math.isqrt(len(plan.mean_mask)) if plan.mean_mask else 0
        mean_mask = np.array(plan.mean_mask).reshape(side, side) / 255.0 if plan.mean_mask else None
        spent = ModelTime()
        statistics = evaluate(network, self.store, rows, mean_mask=mean_mask, time_spent=spent)
        return EvaluateReport(
            site=self.hospital.name,
            job_id=plan.job_id,
            round=plan.round,
            plan_sha256=signed.sha256,
            split=plan.evaluate_on,
            statistics=suppress_small_cells(statistics, minimum=self.policy.minimum_cohort),
            seconds={"evaluation": time.perf_counter() - started, "evaluation_model": spent.model_s},
        )


def private_data(hospital: Hospital, store: Store, plan: RoundPlan) -> TrainingData:
    """Return all training images and what each may teach; nothing here depends on counts of patients."""
    return TrainingData(hospital.name, store, hospital.pools(store, plan.mask_convention))


def private_report(site: str, plan: RoundPlan, signed: SignedPlan, sent: Weights) -> TrainReport:
    """Return all that a private site says beside its weights: nothing that depends on patients."""
    return TrainReport(
        site=site,
        job_id=plan.job_id,
        round=plan.round,
        plan_sha256=signed.sha256,
        weights_sha256=weights_sha256(sent),
        steps=plan.work.steps if plan.work else 0,
        teachers={},
        losses={},
    )


def _place(error: Exception) -> str:
    """Return module and line of our code where the error came through."""
    frames = [(str(frame.f_globals.get("__name__")), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours = [f"{name}:{line}" for name, line in frames if name.partition(".")[0] in {"client", "multimix"}]
    return ours[-1] if ours else "?"


def _check_finite(weights: Weights) -> None:
    if not all(np.isfinite(value).all() for value in weights.values()):
        raise Refused("training_diverged")


def _training_rows(pools: Pools) -> np.ndarray:
    return np.union1d(pools.labelled_classification, pools.unlabelled_classification)


def _without_labels(pools: Pools) -> Pools:
    """Let labelled images teach the classifier by consistency only."""
    return replace(
        pools,
        labelled_classification=pools.labelled_classification[:0],
        unlabelled_classification=_training_rows(pools),
    )
