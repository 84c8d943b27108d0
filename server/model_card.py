"""The model card that travels with the weights: what the model is for, what taught it, its scores and limits.

After Mitchell et al. 2019 (doi:10.1145/3287560.3287596). Derived from `Results`, so it cannot claim what was
not measured.
"""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from server.results import Metrics, Record, Results, SiteCounts, replace_file

MODEL_CARD_FILE = "model_card.json"
INTENDED_USE = (
    "Research only. Not a medical device: not cleared for any clinical use, not to be used to diagnose, "
    "triage or treat a patient."
)

_CONSTANT_SCORE_STD = 0.01


class SiteData(Record):
    """What one site contributed, or was tested on."""

    role: Literal["train", "held-out"]
    counts: SiteCounts
    mask_conventions: tuple[str, ...]
    licences: tuple[str, ...]


class ModelCard(Record):
    """The content of `model_card.json`."""

    schema_version: Literal[1] = 1
    name: str
    version: str
    job_id: str
    architecture: str
    parameters: int
    intended_use: str
    synthetic: bool
    privacy: str
    rounds: int
    data: dict[str, SiteData]
    data_licences: tuple[str, ...]
    metrics: Metrics
    site_metrics: dict[str, Metrics]
    convention_metrics: dict[str, Metrics]
    limitations: tuple[str, ...]
    config_sha256: str


def model_card(results: Results, *, parameters: int, data_licences: tuple[str, ...]) -> ModelCard:
    """Return the card of the run's final model; `data_licences` are those of the whole data set."""
    return ModelCard(
        name=results.title,
        version=_package_version(results),
        job_id=results.job_id,
        architecture="MultiMix: U-Net encoder, classifier, saliency bridge, decoder (arXiv 2110.13185)",
        parameters=parameters,
        intended_use=INTENDED_USE,
        synthetic=results.synthetic,
        privacy=results.privacy,
        rounds=len(results.rounds),
        data={name: _site_data(results, name) for name in results.sites},
        data_licences=data_licences,
        metrics=results.overall.metrics,
        site_metrics={name: site.metrics for name, site in results.sites.items()},
        convention_metrics={name: convention.metrics for name, convention in results.conventions.items()},
        limitations=tuple(limitations(results)),
        config_sha256=config_sha256(results),
    )


def write_model_card(card: ModelCard, folder: Path) -> Path:
    """Write `model_card.json` into the run folder atomically and return its path; raises as replace_file."""
    path = folder / MODEL_CARD_FILE
    replace_file(path, card.model_dump_json(indent=1).encode())
    return path


def config_sha256(results: Results) -> str:
    """Return the SHA-256 of the configuration as JSON with sorted keys and no spaces."""
    text = json.dumps(results.config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def limitations(results: Results) -> list[str]:
    """Return what a reader must know before trusting a figure, most important first."""
    found = [
        _synthetic(results),
        _incomplete(results),
        _one_class(results),
        _confounded(results),
        _conventions(results),
        _constant(results),
    ]
    return [text for text in found if text]


def _package_version(results: Results) -> str:
    if "multimix" in results.software:
        return results.software["multimix"]
    try:
        return version("multimix")
    except PackageNotFoundError:
        return "unknown"


def _site_data(results: Results, name: str) -> SiteData:
    site = results.sites[name]
    return SiteData(role=site.role, counts=site.counts, mask_conventions=site.mask_conventions, licences=site.licences)


def _synthetic(results: Results) -> str:
    if not results.synthetic:
        return ""
    return "Trained and tested on synthetic phantoms: the figures say nothing about any patient."


def _incomplete(results: Results) -> str:
    done, planned = len(results.rounds), results.rounds_planned
    if results.privacy_details.budget_spent:
        return f"Ended by the sites' privacy budgets in round {done} of {planned}, which changed nothing any more."
    if done >= planned:
        return ""
    state = "Still running" if results.status == "running" else "Stopped early"
    return f"{state}: {done} of {planned} rounds are done."


def _one_class(results: Results) -> str:
    """Name the sites whose labels, in training or in the evaluation, are of one class."""
    names = [
        name
        for name, site in results.sites.items()
        if (site.counts.normal_patients > 0) != (site.counts.pneumonia_patients > 0)
        or (site.metrics.get("labelled_images") and site.metrics.get("auroc") is None)
    ]
    if not names:
        return ""
    return (
        f"One class only at {_listed(names)}: there a high accuracy can mean that the model recognises the "
        "hospital, and AUROC is undefined."
    )


def _confounded(results: Results) -> str:
    """Labels and sources go together unless every teaching site holds both classes."""
    teaching = [site.counts for site in results.sites.values() if site.role == "train"]
    shares = [
        c.pneumonia_patients / (c.normal_patients + c.pneumonia_patients)
        for c in teaching
        if c.normal_patients + c.pneumonia_patients
    ]
    if len(shares) < 2 or max(shares) - min(shares) < 0.1:  # noqa: PLR2004  (two sites, a tenth apart)
        return ""
    return (
        f"Label and source are confounded: pneumonia is {min(shares):.0%} of the labels at one site and "
        f"{max(shares):.0%} at another. Read classification figures site by site, not pooled."
    )


def _conventions(results: Results) -> str:
    if len(results.conventions) < 2:  # noqa: PLR2004  (two conventions)
        return ""
    return (
        f"Masks follow {len(results.conventions)} conventions ({_listed(list(results.conventions))}): Dice "
        "against a convention other than the learned one is capped by the difference, not by the model."
    )


def _constant(results: Results) -> str:
    names = [
        name
        for name, site in results.sites.items()
        if (spread := site.metrics.get("score_std")) is not None and spread < _CONSTANT_SCORE_STD
    ]
    return f"Scores barely vary at {_listed(names)}: the classifier has collapsed there." if names else ""


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
