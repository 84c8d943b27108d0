"""One round at a hospital, in process: images, torch and policy stay on this side of `Site`."""

import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.card import site_card
from client.policy import SitePolicy, check
from client.replays import Replays
from multimix.batches import TrainingData
from multimix.contract.messages import (
    EvaluateReport,
    Picture,
    RoundPlan,
    SiteCard,
    TrainReport,
    Weights,
    taught_arrays,
    weights_sha256,
)
from multimix.contract.signing import SignedPlan, verified
from multimix.contract.site import Evaluated, Trained
from multimix.contract.suppression import suppress
from multimix.data.hospitals import Hospital
from multimix.data.sampling import Pools, make_pools, patients
from multimix.data.store import Store
from multimix.errors import InputError, Refused
from multimix.evaluation import ModelTime, evaluate
from multimix.network import CLASSES, MultiMixNetwork
from multimix.samples import sample_pictures
from multimix.training import resolve_device, train
from multimix.weights import export, load_into


@dataclass
class LocalSite:
    """A hospital whose images lie on this machine; see `multimix.contract.site.Site`."""

    hospital: Hospital
    policy: SitePolicy
    coordinator: Ed25519PublicKey
    device: str = "auto"
    synthetic: bool = False
    _replays: Replays = field(default_factory=Replays)

    @cached_property
    def store(self) -> Store:
        """The decoded images; opened once and kept warm between rounds."""
        return self.hospital.store()

    def describe(self) -> SiteCard:
        """Count what policy lets the site say; small groups of masks give no mean mask."""
        device = str(self._torch_device())
        return site_card(self.hospital, self.store, self.policy, device=device, synthetic=self.synthetic)

    def train(self, signed: SignedPlan, weights: Weights) -> Trained:
        """Train for one round. Refuses before a pixel is read; a diverged model or an untaught module is never sent."""
        plan, network = self._admitted(signed, weights, kind="train")
        if self.hospital.role == "held-out":
            raise Refused("site_held_out")
        if plan.work is None:
            raise Refused("plan_incomplete")
        started = time.perf_counter()
        evaluation = self._evaluation(plan, signed, network) if self._may_evaluate(plan) else None
        evaluated = time.perf_counter()
        outcome = train(network, self._training_data(plan), plan.method, plan.work, seed=plan.seed)
        trained = export(network)
        if not all(np.isfinite(value).all() for value in trained.values()):
            raise Refused("training_diverged")
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
        plan, network = self._admitted(signed, weights, kind="evaluate")
        report = self._evaluation(plan, signed, network)
        count = min(plan.pictures, self.policy.pictures)
        pictures: tuple[Picture, ...] = ()
        if count:
            rows = self.hospital.evaluation_rows(self.store, report.split)
            pictures = sample_pictures(network, self.store, rows, count=count)
        return Evaluated(report, pictures)

    def _admitted(self, signed: SignedPlan, weights: Weights, *, kind: str) -> tuple[RoundPlan, MultiMixNetwork]:
        """Check signature, policy, replay and binding to the weights; return plan and network."""
        plan = verified(signed, self.coordinator)
        if plan.kind != kind:
            raise Refused("plan_malformed", f"a plan to {plan.kind} sent as an order to {kind}")
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
        self._replays.admit(plan, signed.sha256)
        return plan, network.to(device)

    def _torch_device(self) -> torch.device:
        try:
            return resolve_device(self.device)
        except InputError:
            raise Refused("device_unavailable") from None

    def _pools(self, convention: str | None) -> Pools:
        conventions = None if convention is None else frozenset((convention,))
        return make_pools(
            self.store,
            self.hospital.evaluation_rows(self.store, "train"),
            budget=self.hospital.budget,
            conventions=conventions,
            seed=self.hospital.seed,
            site=self.hospital.name,
        )

    def _training_data(self, plan: RoundPlan) -> TrainingData:
        """Decide what each image may teach under this plan."""
        pools = self._pools(plan.mask_convention)
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
            statistics=suppress(statistics, minimum=self.policy.minimum_cohort),
            seconds={"evaluation": time.perf_counter() - started, "evaluation_model": spent.model_s},
        )


def _training_rows(pools: Pools) -> np.ndarray:
    return np.union1d(pools.labelled_classification, pools.unlabelled_classification)


def _without_labels(pools: Pools) -> Pools:
    """Let labelled images teach the classifier by consistency only."""
    return replace(
        pools,
        labelled_classification=pools.labelled_classification[:0],
        unlabelled_classification=_training_rows(pools),
    )
