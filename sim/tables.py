"""Results as a table for the terminal and, the same figures, for the README."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from server.results import Metrics, Results

_COLUMNS = (
    ("Acc", "accuracy"),
    ("bAcc", "balanced_accuracy"),
    ("AUROC", "auroc"),
    ("Dice", "dice"),
    ("HD95 px", "hausdorff95_px"),
)
_BASELINES = {
    "accuracy": "majority_accuracy",
    "balanced_accuracy": "majority_balanced_accuracy",
    "dice": "mean_mask_dice",
    "hausdorff95_px": "mean_mask_hausdorff95_px",
}


def rows(results: Results) -> list[list[str]]:
    """Return header and rows: each site with its baseline row, then Dice by mask convention."""
    table = [["site", "role", "masks drawn", "test images", "row", *(title for title, _ in _COLUMNS)]]
    for name, site in sorted(results.sites.items(), key=lambda item: (item[1].role == "held-out", item[0])):
        images = str(int(max(_count(site.metrics, "labelled_images"), _count(site.metrics, "masked_images"))))
        drawn = ", ".join(site.mask_conventions) or "none"
        table.append([name, site.role, drawn, images, "model", *_figures(site.metrics)])
        if site.local_only is not None:
            table.append(["", "", "", "", "local only", *_figures(site.local_only)])
        table.append(["", "", "", "", "majority / mean mask", *_baselines(site.metrics)])
    for name, convention in sorted(results.conventions.items()):
        images = str(int(_count(convention.metrics, "masked_images")))
        learned = "learned" if convention.learned else "not learned"
        table.append(["all", learned, name, images, "model", *_figures(convention.metrics)])
        table.append(["", "", "", "", "mean mask", *_baselines(convention.metrics)])
    return table


def markdown(results: Results) -> str:
    """Return the table in Markdown."""
    header, *body = rows(results)
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def results_table(results: Results) -> Table:
    """Return the table for a terminal of 80 columns: the roles and conventions in full are in the report."""
    header, *body = rows(results)
    table = Table(
        title=f"{escape(results.title)}: test patients" + (" (SYNTHETIC phantoms)" if results.synthetic else ""),
        caption="baseline: always the majority class, always the mean mask",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("site")
    table.add_column("images", justify="right")
    for title in header[4:]:
        table.add_column(title, no_wrap=True, justify="left" if title == "row" else "right")
    for site, role, drawn, images, row, *figures in body:
        name = {"": "", "all": f"masks {drawn}"}.get(site, f"{site} (unseen)" if role == "held-out" else site)
        kind = "baseline" if "mean mask" in row else row
        table.add_row(*map(escape, (name, images, kind, *figures)), style="dim" if kind == "baseline" else "")
    return table


def score_table(figures: Mapping[str, Metrics]) -> Table:
    """Return one row for each hospital."""
    table = Table(title="test patients", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("site")
    for title, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for site, metrics in sorted(figures.items()):
        table.add_row(escape(site), *_figures(metrics))
    return table


def _figures(metrics: Metrics) -> list[str]:
    return [_shown(metrics.get(key)) for _, key in _COLUMNS]


def _baselines(metrics: Metrics) -> list[str]:
    return [_shown(metrics.get(_BASELINES[key])) if key in _BASELINES else "-" for _, key in _COLUMNS]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(metrics: Metrics, key: str) -> float:
    return metrics.get(key) or 0.0
