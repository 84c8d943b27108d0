"""From what happened to what a person sees: assembles the results, and writes results, report, model and card."""

import platform
from datetime import UTC, datetime
from functools import reduce
from importlib.metadata import version
from pathlib import Path

from multimix.contract.messages import SiteCard
from multimix.contract.run_config import RunConfig
from multimix.contract.statistics import EvaluationStatistics, add
from multimix.metrics import summarise
from multimix.version import __version__
from server.checkpoint import JobState
from server.convention import site_figures
from server.log import log
from server.privacy_results import in_words, privacy_of
from server.report import write_report
from server.results import (
    ConventionResult,
    Overall,
    Picture,
    Results,
    RunStatus,
    SiteCounts,
    SiteResult,
    replace_file,
    write_results,
)
from server.rounds import Scores

_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_PICTURE = 4_000_000


def assemble(
    config: RunConfig,
    state: JobState,
    *,
    status: RunStatus,
    scores: Scores | None = None,
    pictures: tuple[Picture, ...] = (),
    licences: dict[str, tuple[str, ...]] | None = None,
) -> Results:
    """Return the results so far; without `scores`, the figures of the final model are empty."""
    privacy = privacy_of(config, state, status=status)
    statistics = {site: report.statistics for site, report in scores.reports.items()} if scores else {}
    return Results(
        job_id=state.job_id,
        title=config.title,
        status=status,
        synthetic=any(card.synthetic for card in state.cards.values()),
        privacy=in_words(privacy),
        privacy_details=privacy,
        started=datetime.fromisoformat(state.started),
        finished=None if status == "running" else datetime.now(UTC),
        rounds_planned=config.rounds,
        rounds=state.rounds,
        sites={
            site: SiteResult(
                role=card.role,
                counts=_counts(card, state.mask_convention),
                metrics=_site_metrics(statistics.get(site), state.mask_convention),
                local_only=state.local_only.get(site),
                mask_conventions=card.conventions,
                licences=(licences or {}).get(site, ()),
                seconds=scores.reports[site].seconds if scores and site in scores.reports else {},
            )
            for site, card in sorted(state.cards.items())
        },
        conventions=_conventions(state, statistics),
        overall=Overall(metrics=summarise(reduce(add, statistics.values())) if statistics else {}),
        timing=_timing(state),
        pictures=pictures,
        config={key: value for key, value in config.flat().items() if key not in ("out", "cache", "data")}
        | {"data": Path(config.data).name if config.data else "synthetic phantoms"},
        software={
            "multimix": __version__,
            "python": platform.python_version(),
            "flwr": version("flwr"),
            "torch at the sites": ", ".join(sorted({c.software.get("torch", "?") for c in state.cards.values()})),
        },
    )


def _site_metrics(statistics: EvaluationStatistics | None, convention: str | None) -> dict[str, float | None]:
    return site_figures(statistics, convention) if statistics else {}


def _counts(card: SiteCard, convention: str | None) -> SiteCounts:
    if card.role == "held-out":
        return SiteCounts(images=card.images, patients=card.patients)
    used = [count for name, count in card.masked_patients.items() if convention in (None, name)]
    labelled = card.labelled_patients.normal + card.labelled_patients.pneumonia
    return SiteCounts(
        images=card.images,
        patients=card.patients,
        normal_patients=card.labelled_patients.normal,
        pneumonia_patients=card.labelled_patients.pneumonia,
        masked_patients=sum(used),
        unlabelled_patients=max(0, card.training_patients - labelled),
    )


def _conventions(state: JobState, statistics: dict[str, EvaluationStatistics]) -> dict[str, ConventionResult]:
    names = sorted({name for s in statistics.values() for name in s.segmentation})
    result = {}
    for name in names:
        holders = {site: s for site, s in statistics.items() if name in s.segmentation}
        figures = summarise(reduce(add, holders.values()), name)
        result[name] = ConventionResult(
            metrics={key: value for key, value in figures.items() if _is_segmentation(key)},
            sites=tuple(sorted(holders)),
            learned=state.mask_convention in (None, name),
        )
    return result


def _is_segmentation(metric: str) -> bool:
    return any(word in metric for word in ("dice", "jaccard", "hausdorff", "ssim", "masked_images"))


def _timing(state: JobState) -> dict[str, float]:
    """Sum what each part of the server's work took over all rounds; the parts do not overlap."""
    timing: dict[str, float] = {}
    for record in state.rounds:
        for part, seconds in record.parts.items():
            timing[part] = timing.get(part, 0.0) + seconds
    return timing


def write_pictures(folder: Path, scores: Scores) -> tuple[Picture, ...]:
    """Write the pictures that sites released under pictures/."""
    written = []
    for site, pictures in sorted(scores.pictures.items()):
        for number, picture in enumerate(pictures):
            if not picture.png.startswith(_PNG) or len(picture.png) > _LARGEST_PICTURE:
                log.warning("  a picture of %s is left out: no PNG of at most %d bytes", site, _LARGEST_PICTURE)
                continue
            name = f"pictures/{site}-{number:02d}.png"
            replace_file(folder / name, picture.png)
            written.append(Picture(site=site, caption=picture.caption, file=name))
    return tuple(written)


def publish(results: Results, folder: Path) -> None:
    """Write results.json and report.html."""
    write_results(results, folder)
    write_report(results, folder)
