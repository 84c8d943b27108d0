"""The page a person reads: `report.html`, one self-contained file rendered from `Results` after every round.

server/report_tables.py and server/report_privacy.py choose the figures, server/plots.py draws, server/report.html.md
lays out; this module puts them together. Nothing is fetched (a content security policy in the page forbids it), text
from sites is escaped, and an undefined figure is a dash that the page explains.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from multimix.pictures import PREDICTION_COLOUR, SALIENCY_COLOURS, TRUTH_COLOUR
from server.model_card import limitations
from server.plots import Column, Line, colour_class, column_chart, line_chart
from server.report_privacy import privacy_section
from server.report_tables import (
    CLASSIFICATION,
    SEGMENTATION,
    duration,
    key_figures,
    modules,
    part_names,
    site_block,
    site_order,
    site_seconds,
    taught_table,
)
from server.results import Results, RoundResult, replace_file

REPORT_FILE = "report.html"


CURVES = (
    ("dice", "Validation Dice"),
    ("auroc", "Validation AUROC"),
    ("balanced_accuracy", "Validation balanced accuracy"),
)


@dataclass(frozen=True)
class Chart:
    """A drawn chart and its heading."""

    heading: str
    svg: Markup


def write_report(results: Results, folder: Path) -> Path:
    """Write `report.html` into the run folder atomically and return its path.

    Raises:
        InputError: as `replace_file`; a picture that is missing is shown as missing instead.
    """
    path = folder / REPORT_FILE
    replace_file(path, render(results, folder).encode())
    return path


def render(results: Results, folder: Path) -> str:
    """Return the page; `folder` is where the pictures lie."""
    names = site_order(results)
    slots = {name: slot for slot, name in enumerate(names)}
    return _TEMPLATE.render(
        results=results,
        blocks=[site_block(name, results) for name in names if name in results.sites],
        measures=(CLASSIFICATION, SEGMENTATION),
        tiles=key_figures(results),
        notes=limitations(results),
        slots=slots,
        in_rounds=[name for name in names if any(name in r.sites for r in results.rounds)],
        curves=metric_charts(results, slots),
        losses=loss_charts(results, slots),
        shares=share_charts(results, slots),
        taught=taught_table(results, names),
        privacy=privacy_section(results),
        incidents=[(r.round, name, s) for r in results.rounds for name, s in r.sites.items() if s.reason],
        rounds_chart=time_chart(results),
        parts={name: slot for slot, name in enumerate(part_names(results))},
        site_seconds=site_seconds(results, names),
        pictures=[(p, picture_uri(folder / p.file)) for p in results.pictures],
        legend={"prediction": PREDICTION_COLOUR, "truth": TRUTH_COLOUR, "saliency": SALIENCY_COLOURS},
    )


def metric_charts(results: Results, slots: Mapping[str, int]) -> list[Chart]:
    """Draw each validation metric by round, one line a site."""
    return _charts([(heading, _lines(results, slots, "metrics", key)) for key, heading in CURVES])


def loss_charts(results: Results, slots: Mapping[str, int]) -> list[Chart]:
    """Draw each loss term by round, one line a site, and how far the weights moved."""
    terms = dict.fromkeys(term for r in results.rounds for site in r.sites.values() for term in site.losses)
    drawn = [(f"Loss: {term.replace('_', ' ')}", _lines(results, slots, "losses", term)) for term in terms]
    moved = {name: [(r.round, r.sites[name].update_norm) for r in results.rounds if name in r.sites] for name in slots}
    lines = [Line(name, slots[name], tuple(points)) for name, points in moved.items() if points]
    return _charts([*drawn, ("Size of the update (L2 norm)", lines)])


def share_charts(results: Results, slots: Mapping[str, int]) -> list[Chart]:
    """Draw who taught each module, by round."""
    return [
        Chart(
            module.capitalize(),
            column_chart(
                [_share_column(r, module) for r in results.rounds],
                slots=slots,
                label=f"Share of {module}",
                top=1.0,
            ),
        )
        for module in modules(results)
    ]


def time_chart(results: Results) -> Markup:
    """Draw where each round's time went."""
    slots = {name: slot for slot, name in enumerate(part_names(results))}
    columns = [Column(r.round, r.parts) for r in results.rounds]
    return column_chart(columns, slots=slots, label="Seconds", unit=" s")


def picture_uri(path: Path) -> str:
    """Return the picture as a data URI; empty where the file is missing."""
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""


def _lines(results: Results, slots: Mapping[str, int], kind: str, key: str) -> list[Line]:
    lines = []
    for name, slot in slots.items():
        rounds = [(r.round, getattr(r.sites[name], kind)) for r in results.rounds if name in r.sites]
        points = tuple((number, figures.get(key)) for number, figures in rounds)
        if any(value is not None for _, value in points):
            lines.append(Line(name, slot, points))
    return lines


def _charts(series: Sequence[tuple[str, Sequence[Line]]]) -> list[Chart]:
    charts = [Chart(heading, line_chart(lines, label=heading)) for heading, lines in series]
    return [chart for chart in charts if chart.svg]


def _share_column(result: RoundResult, module: str) -> Column:
    if module in result.kept_modules:
        return Column(result.round, {}, "nobody taught it; kept unchanged")
    return Column(result.round, result.module_shares.get(module, {}))


def _moment(when: datetime) -> str:
    return f"{when.astimezone(UTC):%-d %B %Y, %H:%M} UTC"


def _figure(value: float | None, decimals: int = 3) -> str | Markup:
    if value is None:
        return Markup('<span class="none" title="undefined">\u2013</span>')
    return f"{value:.{decimals}f}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _figure,
        "duration": duration,
        "moment": _moment,
        "colour_class": colour_class,
    }
    return environment


_TEMPLATE = _environment().get_template("report.html.md")
