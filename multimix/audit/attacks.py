"""Membership inference on a released model, run at the site: both attacks, beside what the claim permits.

Members are the site's training patients, others those whom it held back. Shadow models are trained here, as the site
trains, on random halves of both. Everything stays with the auditor unless the officer releases it: the figures are
exact and about real patients (`multimix.audit.membership`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from multimix.audit.membership import (
    AttackFigures,
    Floats,
    attack_figures,
    joint_likelihood_ratio_scores,
    permitted_auc,
    permitted_tpr,
    run_shadows,
)
from multimix.audit.membership_scores import PatientLosses, loss_threshold_scores, patient_losses
from multimix.audit.observation import Subject, audit_secret
from multimix.config import Frozen
from multimix.data.sampling import Budget, make_pools
from multimix.network import MultiMixNetwork

Rows = npt.NDArray[np.int64]
Interval = tuple[float, float]


class Attack(Frozen):
    """How well one attack told members from others."""

    name: Literal["loss threshold", "likelihood ratio"]
    members: int
    others: int
    auc: float
    auc_interval: Interval  # 95 %
    tpr: float  # at the false positive rate beside it, at most 1 %
    tpr_interval: Interval
    fpr: float
    fpr_interval: Interval
    note: str


class MembershipResult(Frozen):
    """Both attacks on one model, and what (epsilon, delta) permits any attack."""

    attacks: tuple[Attack, ...]
    epsilon: float
    delta: float
    permitted_auc: float
    permitted_tpr: float  # at a false positive rate of 1 %
    left_out: int  # patients without label and mask
    shadow_models: int
    seed: int


@dataclass(frozen=True, eq=False)
class Target:
    """A released model, and who may have trained it."""

    network: MultiMixNetwork
    members: Rows  # of the store
    others: Rows
    conventions: frozenset[str] | None  # of masks that the training accepted; None is all


def attack(
    subject: Subject,
    target: Target,
    *,
    epsilon: float,
    delta: float,
    shadow_models: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> MembershipResult:
    """Attack a model by loss threshold, and by likelihood ratio if shadow models are asked for.

    Args:
        subject: How the site trains; the shadow models are trained so.
        target: The model attacked.
        epsilon: Claimed for the whole run, at `delta`.
        delta: Of the claim.
        shadow_models: None, or an even number from 4 on.
        seed: Of the halves, and of the shadow models' secrets.
        progress: Told how many shadow models of how many are trained.

    Raises:
        InputError: as `attack_figures`, `patient_losses` and `run_shadows`. Refused: as the trainer.
    """
    losses = _losses(subject, target, target.network)
    member = np.isin(losses.patient, subject.data.store.patient[target.members])
    scores = {"loss threshold": loss_threshold_scores(losses, subject.method.objective)}
    if shadow_models:
        shadows = run_shadows(
            lambda chosen, number: _shadow(subject, target, losses.patient[chosen], number),
            lambda network: _losses(subject, target, network).statistics,
            patients=len(losses.patient),
            models=shadow_models,
            seed=seed,
            progress=lambda done: progress(done, shadow_models),
        )
        scores["likelihood ratio"] = joint_likelihood_ratio_scores(losses.statistics, shadows)
    return MembershipResult(
        attacks=tuple(_attack(name, score, member) for name, score in scores.items()),
        epsilon=epsilon,
        delta=delta,
        permitted_auc=permitted_auc(epsilon, delta),
        permitted_tpr=permitted_tpr(0.01, epsilon, delta),
        left_out=losses.left_out,
        shadow_models=shadow_models,
        seed=seed,
    )


def _attack(name: str, scores: Floats, member: npt.NDArray[np.bool_]) -> Attack:
    figures: AttackFigures = attack_figures(scores[member], scores[~member])
    return Attack.model_validate({"name": name, **asdict(figures)})


def _losses(subject: Subject, target: Target, network: MultiMixNetwork) -> PatientLosses:
    rows = np.union1d(target.members, target.others)
    return patient_losses(network, subject.data.store, rows, subject.method.objective, conventions=target.conventions)


def _shadow(subject: Subject, target: Target, patients: npt.NDArray[np.int32], number: int) -> MultiMixNetwork:
    """Train a model as the site does, on some of the members and others."""
    data = subject.data
    rows = np.union1d(target.members, target.others)
    chosen = rows[np.isin(data.store.patient[rows], patients)]
    store = replace(data.store, split=np.full(len(data.store), "train"))
    pools = make_pools(store, chosen, budget=Budget(), conventions=target.conventions, seed=0, site=data.site)
    network = subject.network()
    subject.train(
        network,
        replace(data, store=store, pools=pools),
        subject.method,
        subject.work(),
        subject.dp,
        secret=audit_secret(number),
    )
    return network
