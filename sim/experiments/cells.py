"""Where a row's figures stand: the cells of the grid of labels and masks, and the columns of the tables."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sim.experiments.federations import WITHOUT
from sim.experiments.inference import Estimate
from sim.experiments.owners import MASKED
from sim.experiments.published import beside
from sim.experiments.summary import RowFigures, Summary


class Column(NamedTuple):
    """A column: its title, where its figure is in a summary, and where in the paper's table."""

    title: str
    set: str
    metric: str
    published: tuple[str, str] | None = None  # in_domain or cross_domain, and metric


def cells_of(summary: Summary) -> list[str]:
    """Return the cells of the grid from few labels and masks to many; those of one task only where no other is."""
    groups = dict.fromkeys(row.group for row in summary.rows)
    both = [group for group in groups if "0" not in group.split("-")]
    return sorted(both or groups, key=_budgets)


def in_cell(group: str, cell: str) -> bool:
    """Return whether a row stands in a cell: one that learns one task stands in all with its budget."""
    return all(own in {"0", asked} for own, asked in zip(group.split("-"), cell.split("-"), strict=True))


def _budgets(group: str) -> tuple[float, ...]:
    return tuple(math.inf if part == "Full" else float(part) for part in group.split("-"))


def estimate_of(row: RowFigures, column: Column) -> Estimate | None:
    """Return a figure of a row; None where it has none or it is undefined."""
    estimate = row.figures.get(column.set, {}).get(column.metric)
    return estimate if estimate is not None and estimate.value is not None else None


def unseen_hospital(group: str) -> str:
    """Return who is held out in a group of a federation's rows; empty where nobody is named."""
    return group.removeprefix(WITHOUT) if group.startswith(WITHOUT) else ""


def unseen_column(name: str) -> Column:
    """Return the figure of all patients of a hospital that was held out."""
    return Column("", f"{name}/all", "dice" if name in MASKED else "auroc")


def worst(row: RowFigures, columns: Sequence[Column]) -> float | None:
    """Return the lowest of some figures of a row; None where one is missing."""
    found = [estimate_of(row, column) for column in columns]
    values = [each.value for each in found if each is not None and each.value is not None]
    return min(values) if len(values) == len(columns) else None


def published_value(row: RowFigures, cell: str, column: Column) -> float | None:
    """Return what was published of a row in its own cell; `modern` is no row of the paper."""
    paper = beside(row.row, row.group)
    if paper is None or column.published is None or row.row == "modern" or not in_cell(row.group, cell):
        return None
    part, metric = column.published
    figures: dict[str, float | None] = getattr(paper, part)
    return figures.get(metric)
