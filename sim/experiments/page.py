"""The page of an experiment: `report.html`, one file that fetches nothing and runs no script.

figures.py draws, page_tables.py chooses the cells, strips.py makes the pictures, page.html.md lays out. All texts are
escaped.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from multimix.files import write_atomically
from multimix.pictures import PREDICTION_COLOUR, SALIENCY_COLOURS, TRUTH_COLOUR
from sim.experiments.figures import budget_charts, budget_legend, epsilon_chart, epsilon_legend
from sim.experiments.page_tables import (
    convergence_table,
    difference_table,
    goal_table,
    grid_tables,
    health_table,
    heat_map,
    privacy_table,
    scaling_table,
)
from sim.experiments.private_runs import privacy_points
from sim.experiments.scales import SCALES, Scale
from sim.experiments.strips import Strip
from sim.experiments.summary import Summary

FILE: Final = "report.html"
_TITLES: Final = {
    "paper": "The paper's table",
    "ablation": "modern, with one thing changed",
    "federated": "The hospitals' table",
    "scale": "Rounds of many sites",
}
_GRIDS: Final = ("paper", "ablation")  # have cells of labels and masks
_SCALES: Final = {
    "smoke": "A smoke test: it shows that the experiment runs. Its figures mean nothing.",
    "cpu": "What two cores do in hours: small images and few steps, far from the paper's setting.",
    "full": "For a GPU: the paper's image size, and long training.",
}
_HASH: Final = 16


def write_page(summary: Summary, folder: Path, strips: Sequence[Strip] = ()) -> Path:
    """Write the page and return the file."""
    path = folder / FILE
    write_atomically(path, render(summary, strips).encode())  # readable by its owner: radiographs
    return path


def render(summary: Summary, strips: Sequence[Strip] = ()) -> str:
    """Return the page."""
    grid, federated = summary.experiment in _GRIDS, summary.experiment == "federated"
    others = (
        goal_table(summary),
        scaling_table(summary),
        privacy_table(summary),
        convergence_table(summary),
        health_table(summary),
    )
    by_epsilon = [
        (epsilon_chart(points, heading=name), epsilon_legend(points))
        for name, points in privacy_points(summary).items()
    ]
    return _TEMPLATE.render(
        summary=summary,
        title=_TITLES.get(summary.experiment, summary.experiment),
        scale_words=_SCALES.get(summary.scale, ""),
        facts=facts(summary),
        mixed=mixed(summary),
        heat=heat_map(summary) if federated and summary.rows else None,
        charts=budget_charts(summary) if grid else [],
        legend=budget_legend(summary),
        by_epsilon=[(chart, key) for chart, key in by_epsilon if chart],
        grids=grid_tables(summary) if grid else [],
        others=[table for table in others if table.lines],
        differences=difference_table(summary),
        strips=[(strip.caption, _data_uri(strip.png)) for strip in strips],
        outlines={"prediction": PREDICTION_COLOUR, "truth": TRUTH_COLOUR, "saliency": SALIENCY_COLOURS},
    )


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Return what the figures come from, by name."""
    scale = next((each for name, each in SCALES.items() if name == summary.scale), None)
    found = [
        ("Cases", f"{summary.cases} of {summary.cases + len(summary.missing)} finished"),
        (
            "Scale",
            summary.scale
            if scale is None or summary.experiment == "scale"
            else f"{summary.scale}: {_size(scale, summary.experiment)}",
        ),
        ("Code", ", ".join(summary.code)),
        ("Data", ", ".join(f"sha256 {each[:_HASH]}…" for each in summary.data_sha256)),
        ("Device", ", ".join(summary.devices)),
        ("Software", ", ".join(f"{name} {version}" for name, version in summary.software.items())),
        ("Compute", duration(summary.compute_s) + ", one case after the other"),
    ]
    return [(name, said) for name, said in found if said]


def _size(scale: Scale, experiment: str) -> str:
    image = f"images of {scale.image_size} x {scale.image_size}, width {scale.width}"
    if experiment in _GRIDS:
        return f"{image}, {scale.steps} steps of {scale.images_per_group} images a group"
    return f"{image}, {scale.rounds} rounds of {scale.local_steps} steps"


def mixed(summary: Summary) -> list[str]:
    """Return what differs among the cases and should not."""
    found = (("versions of the code", summary.code), ("kinds of device", summary.devices))
    return [f"{len(values)} {what}: {', '.join(values)}" for what, values in found if len(values) > 1]


def duration(seconds: float) -> str:
    """Return a time in its largest sensible unit."""
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_TEMPLATE = _environment().get_template("page.html.md")
