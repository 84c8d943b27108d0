"""The tables of an experiment's page, as cells: the same figures as tables.py, for a template to lay out.

The heat map is a table too, not a picture: it scrolls, prints and can be read aloud. A column's colours say how its own
figures lie between its lowest and its highest; one hue that only gets darker, so it reads in grey.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sim.experiments.cells import Column, cells_of, estimate_of, in_cell, published_value
from sim.experiments.goals import in_words, met, seeds_in_words
from sim.experiments.inference import Estimate, p_in_words
from sim.experiments.private_runs import private_rows
from sim.experiments.summary import Difference, RowFigures, Summary
from sim.experiments.tables import (
    CROSS_CLASS,
    CROSS_MASK,
    IN_CLASS,
    IN_MASK,
    epsilons_in_words,
    health_columns,
    privacy_columns,
)

NOTHING: Final = "\u2013"
_SIGNIFICANT: Final = 0.05
_LEAST_RANGE: Final = 0.05  # of a column's colours: a difference of noise is no contrast
_GRIDS: Final = (
    ("In-domain, class: chex224", IN_CLASS),
    ("In-domain, mask: jsrt", IN_MASK),
    ("Cross-domain, class: nih14", CROSS_CLASS),
    ("Cross-domain, mask: montgomery and shenzhen", CROSS_MASK),
)


@dataclass(frozen=True)
class Cell:
    """A figure and the interval below it; `share`, 0 to 1, is how dark a cell of a heat map is."""

    text: str
    below: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of a table: names to the left, then figures; one without figures is a heading of those below it.

    `kind` is a class of the page.
    """

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table: `names` are the headings of the names, `titles` those of the figures."""

    heading: str
    names: tuple[str, ...]
    titles: tuple[str, ...]
    lines: tuple[Line, ...]


def grid_tables(summary: Summary) -> list[Table]:
    """Return the rows of the paper's grid, cell by cell, each with what was published of it below."""
    tables = [_grid_table(summary, heading, columns) for heading, columns in _GRIDS]
    return [table for table in tables if table.lines]


def health_table(summary: Summary) -> Table:
    """Return what tells a collapsed or overconfident classifier, and what training took."""
    columns = health_columns(summary)
    lines = [
        Line(
            (row.row, row.group),
            (
                *(_cell(row, column, below=False) for column in columns),
                Cell(NOTHING if row.pseudo_label_rate is None else f"{row.pseudo_label_rate:.2f}"),
                Cell(f"{row.parameters:,}" if row.parameters else NOTHING),
                Cell(f"{row.train_s:.0f}" if row.parameters else NOTHING),
            ),
        )
        for row in summary.rows
        if any(estimate_of(row, column) for column in columns)
    ]
    titles = (*(_full_title(each) for each in columns), "pseudo-labels accepted", "parameters", "training s")
    return Table("Scores and pseudo-labels", ("row", "cell"), titles, tuple(lines))


def difference_table(summary: Summary) -> Table:
    """Return the planned comparisons; those that hold after correction are marked."""
    lines = [_difference(each) for each in summary.differences]
    names = ("rows", "in", "figure")
    titles = ("difference", "95 % interval", "seeds", "p", "p, Holm")
    return Table("Planned comparisons", names, titles, tuple(lines))


def goal_table(summary: Summary) -> Table:
    """Return what was aimed at, and by how much it is reached or missed; those that are reached are marked."""
    lines = [
        Line(
            (in_words(each.goal),),
            (Cell(seeds_in_words(each)), Cell(f"{each.asked:.3f}"), Cell(f"{each.found:.3f}"), Cell(_signed(each.by))),
            "holds" if each.by >= 0 else "",
        )
        for each in met(summary)
    ]
    return Table("Goals", ("goal",), ("seeds", "at least", "found", "difference"), tuple(lines))


def heat_map(summary: Summary) -> Table:
    """Return every row at every source: AUROC where both classes are, and Dice."""
    sets = sorted({name for row in summary.rows for name in row.figures if "@" not in name})
    columns = [
        Column(f"{name.replace('/', ' ')} {title}", name, metric)
        for name in sets
        for title, metric in (("AUROC", "auroc"), ("Dice", "dice"))
        if any(estimate_of(row, Column("", name, metric)) for row in summary.rows)
    ]
    shares = [_shares(summary.rows, column) for column in columns]
    groups = list(dict.fromkeys(row.group for row in summary.rows))
    ordered = sorted(enumerate(summary.rows), key=lambda each: groups.index(each[1].group))
    lines, before = [], None
    for number, row in ordered:
        if row.group != before:
            lines.append(Line((row.group,), (), "group"))
        cells = [_heat(row, column, own[number]) for column, own in zip(columns, shares, strict=True)]
        lines.append(Line((row.row,), tuple(cells)))
        before = row.group
    return Table("Every row at every hospital", ("row",), tuple(each.title for each in columns), tuple(lines))


def convergence_table(summary: Summary) -> Table:
    """Return how soon federations were nearly as good as they got, and what had travelled until then."""
    lines = [
        Line(
            (row.row, row.group, metric),
            (Cell(f"{each.last:.3f}"), Cell(str(each.rounds)), Cell(f"{each.sent_bytes / 2**20:.0f}")),
        )
        for row in summary.rows
        for metric, each in sorted(row.convergence.items())
    ]
    titles = ("before the last round", "rounds to 95 %", "MiB sent until then")
    return Table("Rounds and bytes", ("row", "group", "validation"), titles, tuple(lines))


def scaling_table(summary: Summary) -> Table:
    """Return what a round of many sites takes."""
    lines = [
        Line(
            (row.row,),
            (
                Cell(f"{each.sites:,}"),
                Cell(f"{row.parameters:,}" if row.parameters else NOTHING),
                Cell(f"{each.round_s:.1f}"),
                Cell(f"{1000 * each.round_s / each.sites:.0f}"),
                Cell(f"{each.round_s - each.sites_s:.2f}"),
                Cell(f"{each.peak_mib:,.0f}"),
            ),
        )
        for row in summary.rows
        if (each := row.scaling) is not None
    ]
    titles = ("sites", "parameters", "s a round", "ms a site", "of the round, server s", "peak MiB")
    return Table("Rounds of many sites", ("engine",), titles, tuple(lines))


def privacy_table(summary: Summary) -> Table:
    """Return the private runs of patients, and what they are compared with."""
    columns = privacy_columns()
    lines = [
        Line((row.row,), (*(_cell(row, column) for column in columns), Cell(epsilons_in_words(row))))
        for row in private_rows(summary)
    ]
    return Table("Privacy for patients", ("row",), (*(each.title for each in columns), "epsilon spent"), tuple(lines))


def _grid_table(summary: Summary, heading: str, columns: Sequence[Column]) -> Table:
    lines = [line for cell in cells_of(summary) for line in _grid_lines(summary, cell, columns)]
    return Table(heading, ("row",), ("seeds", *(each.title for each in columns)), tuple(lines))


def _grid_lines(summary: Summary, cell: str, columns: Sequence[Column]) -> Iterator[Line]:
    rows = [row for row in summary.rows if in_cell(row.group, cell) and any(estimate_of(row, c) for c in columns)]
    if rows:
        yield Line((f"labels-masks {cell}",), (), "group")
    for row in rows:
        seeds = Cell(str(len(row.seeds)) if row.parameters else NOTHING)
        yield Line((row.row,), (seeds, *(_cell(row, column) for column in columns)))
        published = [published_value(row, cell, column) for column in columns]
        if any(value is not None for value in published):
            figures = (Cell(NOTHING if value is None else f"{value:.3f}") for value in published)
            yield Line(("published",), (Cell(""), *figures), "published")


def _cell(row: RowFigures, column: Column, *, below: bool = True) -> Cell:
    estimate = estimate_of(row, column)
    if estimate is None or estimate.value is None:
        return Cell(NOTHING)
    digits = 1 if column.metric.startswith("hausdorff") else 3
    return Cell(f"{estimate.value:.{digits}f}", _interval(estimate, digits) if below else "")


def _interval(estimate: Estimate, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def _full_title(column: Column) -> str:
    name = column.set.partition("/")[0]
    return column.title if column.title.startswith(name[:4]) else f"{name} {column.title}"


def _difference(each: Difference) -> Line:
    groups = (each.first_group, each.second_group)
    compared = each.comparison
    return Line(
        (f"{each.first} − {each.second}", ", ".join(dict.fromkeys(groups)), f"{each.set} {each.metric}"),  # noqa: RUF001
        (
            Cell(_signed(compared.difference)),
            Cell(f"{_signed(compared.low)} to {_signed(compared.high)}"),
            Cell(str(len(each.seeds))),
            Cell(p_in_words(compared.p)),
            Cell(p_in_words(each.p_holm)),
        ),
        "holds" if each.p_holm < _SIGNIFICANT else "",
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")  # noqa: RUF001  (as wide as the plus)


def _shares(rows: Sequence[RowFigures], column: Column) -> list[float | None]:
    """Return how dark each row's cell is in a column; None where it has no figure."""
    found = [estimate_of(row, column) for row in rows]
    values = [None if each is None else each.value for each in found]
    known = [value for value in values if value is not None]
    low, spread = min(known), max(max(known) - min(known), _LEAST_RANGE)
    return [None if value is None else (value - low) / spread for value in values]


def _heat(row: RowFigures, column: Column, share: float | None) -> Cell:
    cell = _cell(row, column)
    return Cell(cell.text if share is not None else "", cell.below, share)
