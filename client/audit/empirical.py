"""The empirical audit of a site: its newest run, on its present images, with the claim that its events support."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from client.audit.sites import AuditedSite
from client.audit.subjects import subject_of
from multimix.audit.attacks import MembershipResult, Target, attack
from multimix.audit.empirical import EmpiricalResult, audit
from multimix.audit.observation import Subject
from multimix.audit.recompute import price
from multimix.errors import InputError
from multimix.version import code_version
from multimix.weights import load_model

Told = Callable[[str, int, int], None]  # stage, done, of how many


def audited(
    site: AuditedSite, *, canaries: int, patients: int, seed: int, device: str, progress: Told
) -> tuple[str, EmpiricalResult]:
    """Return the run that was taken as the example, and the audit; raises as `subject_of` and `audit`."""
    subject, plan = subject_of(site, site.read_ledger().entries, device=device)
    delta = site.population.failure_probability
    result = audit(
        subject,
        claim=lru_cache(lambda at: _claim(subject, at)),
        delta=delta,
        canaries=canaries,
        patients=patients,
        seed=seed,
        code=code_version(),
        progress=progress,
    )
    return plan.job_id, result


def attacked(
    site: AuditedSite, model: Path, *, shadows: int, seed: int, device: str, progress: Told
) -> MembershipResult:
    """Attack a released model for membership.

    Raises:
        InputError: `model_unreadable`; `image_size` where it is for other images; as `attack`. Refused: as
            `subject_of`.
    """
    subject, plan = subject_of(site, site.read_ledger().entries, device=device)
    hospital, store = site.current()
    network = load_model(model)
    if network.config.image_size != store.image_size:
        raise InputError("image_size", "The model is for images of another size than the site's.")
    delta = site.population.failure_probability
    held_back = [hospital.evaluation_rows(store, split) for split in ("validation", "test")]
    target = Target(
        network=network.to(next(subject.network().parameters()).device),
        members=hospital.evaluation_rows(store, "train"),
        others=np.concatenate(held_back),
        conventions=None if plan.mask_convention is None else frozenset((plan.mask_convention,)),
    )
    return attack(
        subject,
        target,
        epsilon=_claim(subject, delta),
        delta=delta,
        shadow_models=shadows,
        seed=seed,
        progress=lambda done, of: progress("shadow models", done, of),
    )


def _claim(subject: Subject, delta: float) -> float:
    """Return the epsilon of the subject's steps, by the auditor's own accountant."""
    mechanism = (subject.dp.noise_multiplier, subject.dp.sampling_rate)
    return price({mechanism: subject.steps}, delta=delta)
