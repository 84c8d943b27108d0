"""Which replies count: each is checked against the round it answers before it may touch the model.

A reply that fails is left out with a reason code, and the round goes on if the quorum holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multimix.contract.messages import (
    MODULES,
    EvaluateReport,
    SiteCard,
    Teachers,
    TrainReport,
    Weights,
    private_arrays,
    taught_arrays,
    weights_sha256,
)
from multimix.contract.privacy import PatientPrivacy
from multimix.errors import Refused


@dataclass(frozen=True)
class Update:
    """One admitted training reply."""

    site: str
    report: TrainReport
    weights: Weights  # of the modules that the site taught
    update_norm: float  # ||weights - weights sent||
    private_weights: Mapping[str, float] | None = None  # of a private plan: what the site counts in each module


def admit(
    report: TrainReport,
    weights: Weights,
    *,
    card: SiteCard,
    job_id: str,
    round_number: int,
    plan_sha256: str,
    sent: Weights,
    maximum_update_norm: float,
    dp: PatientPrivacy | None = None,
    site_level: bool = False,
) -> Update:
    """Return the update, or raise `Refused` with the reason it is left out.

    A private answer is held to its plan: it weighs what the plan says, and figures beside the weights are refused.
    Under site-level privacy any finite size is taken, since the average clips, and what is not finite counts as zero.
    """
    if report.site != card.site:
        raise Refused("site_mismatch")
    if report.job_id != job_id:
        raise Refused("wrong_job")
    if report.round != round_number:
        raise Refused("wrong_round", f"answered {report.round}, asked {round_number}")
    if report.plan_sha256 != plan_sha256:
        raise Refused("wrong_plan")
    if report.evaluation is not None:
        check_evaluation(report.evaluation, "validation", card=card, job_id=job_id, plan_sha256=plan_sha256)
    if dp is not None and _has_figures(report):
        raise Refused("private_figures")
    sent = taught_arrays(sent, report.teachers) if dp is None else private_arrays(sent, dp)
    _check_arrays(weights, sent, finite=not site_level)
    if weights_sha256(weights) != report.weights_sha256:
        raise Refused("weights_hash")
    norm = _update_norm(weights, sent)
    if not site_level and not norm <= maximum_update_norm:
        raise Refused("update_norm", f"{norm:.3g} is above {maximum_update_norm:.3g}")
    if dp is not None:
        return Update(card.site, report, weights, norm, dict(dp.module_weights.items()))
    return Update(card.site, report.model_copy(update={"teachers": capped(report, card)}), weights, norm)


def check_evaluation(report: EvaluateReport, split: str, *, card: SiteCard, job_id: str, plan_sha256: str) -> None:
    """Refuse figures of another site, job, plan or split, or over more images than the site's card holds.

    The plan's hash binds the round.
    """
    if (report.site, report.job_id, report.plan_sha256, report.split) != (card.site, job_id, plan_sha256, split):
        raise Refused("evaluation_mismatch")
    if report.statistics.images > card.images:
        raise Refused("evaluation_images", f"{report.statistics.images} are above {card.images}")


def _has_figures(report: TrainReport) -> bool:
    exact = report.teachers or report.losses or report.seconds or report.evaluation
    return bool(exact) or report.pseudo_label_rate is not None


def _update_norm(weights: Weights, sent: Weights) -> float:
    with np.errstate(invalid="ignore"):
        squares = (np.square(weights[name].astype(np.float64) - sent[name]).sum() for name in sorted(sent))
        return float(np.sqrt(sum(squares)))


def _check_arrays(weights: Weights, sent: Weights, *, finite: bool) -> None:
    if not sent:
        raise Refused("nothing_taught")
    if set(weights) != set(sent):
        raise Refused("weights_names")
    for name, value in weights.items():
        if value.shape != sent[name].shape:
            raise Refused("weights_shape", name)
        if value.dtype != sent[name].dtype:
            raise Refused("weights_type", name)
        if finite and not np.isfinite(value).all():
            raise Refused("weights_not_finite", name)


def capped(report: TrainReport, card: SiteCard) -> dict[str, Teachers]:
    """Return the teacher counts, none above what the site's card can hold."""
    limits = {
        "encoder": card.training_patients,
        "classifier": card.labelled_patients.normal + card.labelled_patients.pneumonia,
        "decoder": min(card.training_patients, sum(card.masked_patients.values())),
    }
    result = {}
    for module in MODULES:
        teachers = report.teachers.get(module, Teachers())
        labelled = min(teachers.labelled, limits[module])
        unlabelled = min(teachers.unlabelled, card.training_patients - min(labelled, card.training_patients))
        result[module] = Teachers(labelled=labelled, unlabelled=unlabelled)
    return result
