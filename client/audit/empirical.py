"""The empirical audit of a site: its newest run, on its present images, with the claim that its events support."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from client.audit.inputs import read_ledger_bytes
from client.audit.sites import AuditedSite
from client.audit.subjects import subject_of
from multimix.audit.attacks import MembershipResult, Target, attack
from multimix.audit.empirical import EmpiricalResult, audit
from multimix.audit.membership import FEWEST_SHADOWS
from multimix.audit.observation import Subject
from multimix.audit.recompute import price, recompute
from multimix.errors import InputError, SiteError
from multimix.network import MultiMixNetwork
from multimix.training import resolve_device
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


def target_of(site: AuditedSite, model: Path, *, shadows: int, device: str) -> Target:
    """Return what is attacked for membership: whatever cannot be is told here, before anything takes time.

    Raises:
        SiteError: `model_unreadable`, `shadows_unusable`.
        InputError: `image_size` where the model is for other images; `patients_missing` where none was held back.
        Refused: as `AuditedSite.last_order`; `generation_gone` where the images are not as the run began on them.
    """
    if shadows and (shadows < FEWEST_SHADOWS or shadows % 2):
        raise SiteError("shadows_unusable", f"Give 0 shadow models, or an even number from {FEWEST_SHADOWS} on.")
    entries = site.read_ledger().entries
    plan, _weights = site.last_order(entries)
    network, (hospital, store) = _released(model), site.pinned(site.first_order(entries, plan.job_id)[1])
    if network.config.image_size != store.image_size:
        raise InputError("image_size", "The model is for images of another size than the site's.")
    members = hospital.evaluation_rows(store, "train")
    others = np.concatenate([hospital.evaluation_rows(store, split) for split in ("validation", "test")])
    if not len(members) or not len(others):
        raise InputError("patients_missing", "The site held no patient back from training: there is nobody to compare.")
    conventions = None if plan.mask_convention is None else frozenset((plan.mask_convention,))
    return Target(network.to(resolve_device(device)), members, others, conventions)


def attacked(
    site: AuditedSite, target: Target, *, shadows: int, seed: int, device: str, progress: Told
) -> MembershipResult:
    """Attack a released model for membership, beside what the patients' whole history permits.

    The model may carry whatever was ever trained here, so the claim is the lifetime's: infinity after training without
    noise. Raises as `subject_of` and `attack`.
    """
    subject, _plan = subject_of(site, site.read_ledger().entries, device=device, as_it_was=True)
    delta = site.population.failure_probability
    lines = read_ledger_bytes(site.ledger).split(b"\n")[:-1]
    return attack(
        subject,
        target,
        epsilon=recompute(lines, delta=delta).lifetime,
        delta=delta,
        shadow_models=shadows,
        seed=seed,
        progress=lambda done, of: progress("shadow models", done, of),
    )


def _released(model: Path) -> MultiMixNetwork:
    try:
        return load_model(model)
    except InputError as error:  # its words name the file
        text = "This is no model of this software. Give the model.safetensors of a run folder."
        raise SiteError(error.reason, text) from None


def _claim(subject: Subject, delta: float) -> float:
    """Return the epsilon of the subject's steps, by the auditor's own accountant."""
    mechanism = (subject.dp.noise_multiplier, subject.dp.sampling_rate)
    return price({mechanism: subject.steps}, delta=delta)
