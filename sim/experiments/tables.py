"""The tables of an experiment in Markdown, from its summary alone: for docs/experiments.md and the README."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from multimix.files import write_atomically
from sim.experiments.cells import (
    Column,
    cells_of,
    estimate_of,
    in_cell,
    published_value,
    unseen_column,
    unseen_hospital,
    worst,
)
from sim.experiments.federations import LOCAL, NOT_PRIVATE, PHANTOMS, group_without
from sim.experiments.goals import in_words, met, seeds_in_words
from sim.experiments.inference import p_in_words
from sim.experiments.owners import LABELLED, MASKED
from sim.experiments.private_runs import private_rows
from sim.experiments.scales import HELD_OUT
from sim.experiments.summary import RowFigures, Summary

FILE: Final = "tables.md"
NOT_DONE: Final = "-"


IN_CLASS: Final = (
    Column("chex Acc", "chex224/test", "accuracy", ("in_domain", "accuracy")),
    Column("F1-N", "chex224/test", "f1_normal", ("in_domain", "f1_normal")),
    Column("F1-P", "chex224/test", "f1_pneumonia", ("in_domain", "f1_pneumonia")),
    Column("bAcc", "chex224/test", "balanced_accuracy"),
    Column("AUROC", "chex224/test", "auroc", ("in_domain", "auroc")),
)
IN_MASK: Final = (
    Column("jsrt Dice", "jsrt/test", "dice", ("in_domain", "dice")),
    Column("HD", "jsrt/test", "hausdorff_px", ("in_domain", "hausdorff_px")),
    Column("HD95", "jsrt/test", "hausdorff95_px"),
    Column("SSIM", "jsrt/test", "ssim", ("in_domain", "ssim")),
)
CROSS_CLASS: Final = (
    Column("nih14 Acc", "nih14/test", "accuracy", ("cross_domain", "accuracy")),
    Column("F1-N", "nih14/test", "f1_normal", ("cross_domain", "f1_normal")),
    Column("F1-P", "nih14/test", "f1_pneumonia", ("cross_domain", "f1_pneumonia")),
    Column("bAcc", "nih14/test", "balanced_accuracy"),
    Column("AUROC", "nih14/test", "auroc", ("cross_domain", "auroc")),
)
CROSS_MASK: Final = (
    Column("montgomery Dice", "montgomery/test", "dice", ("cross_domain", "dice")),
    Column("HD", "montgomery/test", "hausdorff_px", ("cross_domain", "hausdorff_px")),
    Column("HD95", "montgomery/test", "hausdorff95_px"),
    Column("SSIM", "montgomery/test", "ssim", ("cross_domain", "ssim")),
    Column("shenzhen Dice", "shenzhen/test", "dice"),
)
HEALTH_METRICS: Final = (("spread", "score_std"), ("ECE", "ece"))
CLASS_SITES: Final = tuple(Column(f"{name} AUROC", f"{name}/test", "auroc") for name in LABELLED)
MASK_SITES: Final = tuple(Column(f"{name} Dice", f"{name}/test", "dice") for name in MASKED)
SITES: Final = (*CLASS_SITES, *MASK_SITES)
# What is told first of each part.
README: Final = (
    *(IN_CLASS[0], *IN_CLASS[3:]),
    *(IN_MASK[0], CROSS_MASK[0], CROSS_MASK[-1]),
    *(CROSS_CLASS[0], CROSS_CLASS[-1]),
)


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def grid_table(summary: Summary, columns: Sequence[Column], *, intervals: bool = False) -> str:
    """Return the rows of the paper's grid, cell by cell, with what was published below each.

    A row stands in every cell to which it belongs: one without masks in all cells of its number of labels.
    """
    body = []
    for cell in cells_of(summary):
        for row in summary.rows:
            if not in_cell(row.group, cell) or not _has(row, columns):
                continue
            body.append([row.row, cell, str(len(row.seeds)), *(_figure(row, column, intervals) for column in columns)])
            published = [published_value(row, cell, column) for column in columns]
            if any(value is not None for value in published):
                body.append(["*published*", "", "", *(NOT_DONE if v is None else f"{v:.3f}" for v in published)])
    return markdown(["row", "labels-masks", "seeds", *(column.title for column in columns)], body)


def health_columns(summary: Summary) -> tuple[Column, ...]:
    """Return spread and calibration of scores where a class is scored: in-domain or, of a federation, at its owners."""
    names = LABELLED if summary.experiment == "federated" else ("chex224", "nih14")
    return tuple(
        Column(f"{name} {title}", f"{name}/test", metric) for name in names for title, metric in HEALTH_METRICS
    )


def health_table(summary: Summary) -> str:
    """Return what tells a collapsed or overconfident classifier: spread and calibration of scores, pseudo-labels."""
    columns = health_columns(summary)
    body = [
        [
            row.row,
            row.group,
            *(_figure(row, column, intervals=False) for column in columns),
            NOT_DONE if row.pseudo_label_rate is None else f"{row.pseudo_label_rate:.2f}",
            f"{row.train_s:.0f}",
        ]
        for row in summary.rows
        if _has(row, columns)
    ]
    header = ["row", "group", *(column.title for column in columns), "pseudo-labels accepted", "training s"]
    return markdown(header, body)


def convergence_table(summary: Summary) -> str:
    """Return after how many rounds, and bytes of weights, a federation had 95 % of its last validation figures."""
    body = [
        [row.row, row.group, metric, f"{found.last:.3f}", str(found.rounds), f"{found.sent_bytes / 2**20:.0f}"]
        for row in summary.rows
        for metric, found in sorted(row.convergence.items())
    ]
    return markdown(
        ["row", "group", "validation", "before the last round", "rounds to 95 %", "MiB sent until then"], body
    )


def scaling_table(summary: Summary) -> str:
    """Return what a round of many sites takes."""
    body = [
        [
            str(each.sites),
            row.row,
            f"{row.parameters:,}" if row.parameters else NOT_DONE,
            f"{each.round_s:.1f}",
            f"{1000 * each.round_s / each.sites:.0f}",
            f"{each.round_s - each.sites_s:.2f}",
            f"{each.peak_mib:.0f}",
        ]
        for row in summary.rows
        if (each := row.scaling) is not None
    ]
    header = ["sites", "engine", "parameters", "s a round", "ms a site", "of the round, server s", "peak MiB"]
    return markdown(header, body)


def origin(summary: Summary) -> str:
    """Say in a sentence where the figures come from."""
    missing = f" **{len(summary.missing)} cases are not finished.**" if summary.missing else ""
    return (
        f"`multimix-sim experiment {summary.experiment} --scale {summary.scale}`: {summary.cases} models on "
        f"{', '.join(summary.devices)}, {summary.compute_s / 3600:.1f} h of compute, torch "
        f"{summary.software.get('torch', '?')}, code {', '.join(summary.code)}.{missing}"
    )


def difference_table(summary: Summary) -> str:
    """Return the planned comparisons."""
    body = [
        [
            f"{each.first} - {each.second}",
            each.first_group if each.first_group == each.second_group else f"{each.first_group}, {each.second_group}",
            f"{each.set} {each.metric}",
            str(len(each.seeds)),
            f"{each.comparison.difference:+.3f} ({each.comparison.low:+.3f} to {each.comparison.high:+.3f})",
            p_in_words(each.comparison.p),
            p_in_words(each.p_holm),
        ]
        for each in summary.differences
    ]
    return markdown(["rows", "cell", "figure", "seeds", "difference (95 % interval)", "p", "p, Holm"], body)


def site_table(summary: Summary, groups: Sequence[str] = ()) -> str:
    """Return rows at every hospital that is scored for its task, the worst of them, and the one held out.

    `groups` chooses some, by who is held out; none is all.
    """
    body = []
    for row in summary.rows:
        if groups and row.group not in groups:
            continue
        unseen = unseen_hospital(row.group)
        body.append(
            [
                row.row,
                unseen or NOT_DONE,
                str(len(row.seeds)),
                *(_figure(row, column, intervals=False) for column in SITES),
                *(_number(worst(row, columns)) for columns in (CLASS_SITES, MASK_SITES)),
                _figure(row, unseen_column(unseen), intervals=True) if unseen else NOT_DONE,
            ]
        )
    header = ["row", "held out", "seeds", *(column.title for column in SITES)]
    return markdown([*header, "worst AUROC", "worst Dice", "the one held out, all patients"], body)


def privacy_columns() -> tuple[Column, ...]:
    """Return the figures of private runs: of the sites that train, and of the one that is held out."""
    held_out = HELD_OUT[0]
    inside = (each for each in SITES if not each.set.startswith(f"{held_out}/"))
    return (*inside, unseen_column(held_out)._replace(title=f"{held_out} Dice, held out"))


def epsilons_in_words(row: RowFigures) -> str:
    """Return what a run cost the patients of each site: never less than it was."""
    spent = ", ".join(f"{name} {math.ceil(1000 * each) / 1000:.3f}" for name, each in sorted(row.epsilon_spent.items()))
    return spent or {PHANTOMS: "0", NOT_PRIVATE: "infinity"}.get(row.row, NOT_DONE)


def privacy_table(summary: Summary) -> str:
    """Return the private runs, what they begin with, the same without privacy, and what each cost the patients."""
    columns = privacy_columns()
    body = [
        [row.row, *(_figure(row, each, intervals=False) for each in columns), epsilons_in_words(row)]
        for row in private_rows(summary)
    ]
    return markdown(["row", *(each.title for each in columns), "epsilon spent"], body)


def goal_table(summary: Summary) -> str:
    """Return what was aimed at, and by how much it is reached or missed."""
    body = [
        [
            in_words(each.goal),
            seeds_in_words(each),
            f"{each.asked:.3f}",
            f"{each.found:.3f}",
            f"by {each.by:+.3f}" if each.by >= 0 else f"**missed by {-each.by:.3f}**",
        ]
        for each in met(summary)
    ]
    return markdown(["goal", "seeds", "at least", "found", "reached"], body)


def hospitals_short(summary: Summary) -> str:
    """Return what is compared with the federation: of one hospital held out, and of each alone."""
    return site_table(summary, (group_without({HELD_OUT[0]}), LOCAL))


def write_tables(summary: Summary, folder: Path) -> Path:
    """Write all tables of an experiment and return the file."""
    parts = [f"# {summary.experiment}, scale {summary.scale}"]
    if summary.missing:
        parts.append(f"**Not finished: {len(summary.missing)} cases** ({', '.join(summary.missing)})")
    if summary.experiment == "scale":
        parts.append(scaling_table(summary))
    elif summary.experiment == "federated":
        parts += ["## Every row at every hospital", site_table(summary)]
        parts += ["## Privacy for patients", privacy_table(summary)]
        parts += ["## Rounds and bytes", convergence_table(summary)]
    else:
        for title, columns in (
            ("In-domain, class", IN_CLASS),
            ("In-domain, mask", IN_MASK),
            ("Cross-domain, class", CROSS_CLASS),
            ("Cross-domain, mask", CROSS_MASK),
        ):
            parts += [f"## {title}", grid_table(summary, columns, intervals=True)]
        parts += ["## Scores and pseudo-labels", health_table(summary)]
    if met(summary):
        parts += ["## Goals", goal_table(summary)]
    if summary.differences:
        parts += ["## Planned comparisons", difference_table(summary)]
    path = folder / FILE
    write_atomically(path, ("\n\n".join(parts) + "\n").encode(), mode=0o644)
    return path


def _has(row: RowFigures, columns: Sequence[Column]) -> bool:
    return any(estimate_of(row, column) is not None for column in columns)


def _number(value: float | None) -> str:
    return NOT_DONE if value is None else f"{value:.3f}"


def _figure(row: RowFigures, column: Column, intervals: bool) -> str:  # noqa: FBT001
    estimate = estimate_of(row, column)
    if estimate is None or estimate.value is None:
        return NOT_DONE
    digits = 1 if column.metric.startswith("hausdorff") else 3
    text = f"{estimate.value:.{digits}f}"
    if intervals and estimate.low is not None and estimate.high is not None:
        text += f" ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"
    return text
