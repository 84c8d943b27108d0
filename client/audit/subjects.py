"""From options to what is audited: a site, and the trainer with the site's data as one run used them."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.audit.inputs import key_text, optional_key
from client.audit.sites import AuditedSite, real_site, recorded_run, simulated_site
from client.settings import open_site
from client.site import private_data
from multimix.audit.observation import Subject
from multimix.contract.messages import RoundPlan, Weights
from multimix.contract.signing import public_key
from multimix.errors import Refused, SiteError
from multimix.network import MultiMixNetwork
from multimix.privacy.history import reservations
from multimix.privacy.training import train_privately
from multimix.training import resolve_device
from multimix.weights import load_into

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multimix.privacy.entries import Entry


def audited_site(
    folder: Path | None,
    run: Path | None,
    *,
    name: str,
    data: str,
    cache: str,
    coordinator: str | None = None,
    officer: str | None = None,
) -> AuditedSite:
    """Return the real or simulated site that the options name; an officer's key given replaces that of `site.toml`.

    Raises:
        SiteError: `audit_site` unless exactly one of both is given; as `open_site`, `real_site`, `simulated_site`.
    """
    if (folder is None) == (run is None) or bool(run) != bool(name):
        raise SiteError("audit_site", "Give --site FOLDER, or --run FOLDER and --name SITE of a simulated run.")
    if folder is not None:
        key = optional_key(coordinator)
        site = real_site(open_site(folder), None if key is None else public_key(key))
        if officer is None:
            return site
        return replace(site, population=site.population.model_copy(update={"officer_key": key_text(officer)}))
    recorded = recorded_run(Path(str(run)))
    config = recorded.run_config(data=data, cache=cache)
    return simulated_site(config, recorded.job_id, name, nodes=len(recorded.sites))


def subject_of(
    site: AuditedSite, entries: "Iterable[Entry]", *, device: str, as_it_was: bool = False
) -> tuple[Subject, RoundPlan]:
    """Return the trainer, told what the newest run was told, for all its steps, from the weights that it began with.

    Args:
        site: With its images as they are now, or `as_it_was` when the run began.
        entries: Of its ledger.
        device: To train on.
        as_it_was: On the generation of the images that the run began on.

    Raises:
        Refused: as `AuditedSite.last_order`; `plan_incomplete`, `weights_shape`, `generation_gone`.
        InputError: the images or the device cannot be used.
    """
    listed = tuple(entries)
    plan, _weights = site.last_order(listed)
    if plan.dp is None or plan.work is None:
        raise Refused("plan_incomplete")
    weights, fingerprint = site.first_order(listed, plan.job_id)
    on = str(resolve_device(device))
    subject = Subject(
        train=train_privately,
        network=lambda: _network(plan, weights, on),
        data=private_data(*site.pinned(fingerprint), plan) if as_it_was else site.data(plan),
        method=plan.method,
        dp=plan.dp,
        steps=sum(each.steps for each in reservations(listed, plan.job_id)),
    )
    return subject, plan


def _network(plan: RoundPlan, weights: Weights, device: str) -> MultiMixNetwork:
    try:
        return load_into(MultiMixNetwork(plan.method.network), weights).to(device)
    except ValueError:
        raise Refused("weights_shape") from None
