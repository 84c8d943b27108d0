"""What privacy for patients costs: the private runs of the hospitals' table, and what they are compared with."""

import math
from collections.abc import Mapping
from typing import Final

from sim.experiments.cells import Column, estimate_of, unseen_column
from sim.experiments.federations import NOT_PRIVATE, PHANTOMS, group_without
from sim.experiments.figures import EpsilonPoint
from sim.experiments.scales import HELD_OUT
from sim.experiments.summary import RowFigures, Summary

GROUP: Final = group_without({HELD_OUT[0]})
FIGURES: Final = {
    "AUROC on kermany": Column("kermany AUROC", "kermany/test", "auroc"),
    f"Dice on {HELD_OUT[0]}, never trained on": unseen_column(HELD_OUT[0]),
}


def private_rows(summary: Summary) -> list[RowFigures]:
    """Return the private runs from little privacy spent to much, between what they begin with and one without."""
    rows = {row.row: row for row in summary.rows if row.group == GROUP}
    private = sorted((row for row in rows.values() if row.epsilon_spent), key=_epsilon)
    ends = [rows[name] for name in (PHANTOMS, NOT_PRIVATE) if name in rows]
    return [*(row for row in ends if row.row == PHANTOMS), *private, *(row for row in ends if row.row == NOT_PRIVATE)]


def privacy_points(summary: Summary) -> Mapping[str, list[EpsilonPoint]]:
    """Return the points of each chart, by its heading; none where no run with and none without privacy is there."""
    rows = [row for row in private_rows(summary) if row.row != PHANTOMS]
    if not any(row.epsilon_spent for row in rows) or all(row.epsilon_spent for row in rows):
        return {}
    return {heading: [*_points(rows, column)] for heading, column in FIGURES.items()}


def _points(rows: list[RowFigures], column: Column) -> list[EpsilonPoint]:
    site = column.set.partition("/")[0]
    found = [(row, estimate) for row in rows if (estimate := estimate_of(row, column)) is not None]
    return [
        EpsilonPoint(_epsilon(row), estimate.value, estimate.low, estimate.high, site)
        for row, estimate in found
        if estimate.value is not None
    ]


def _epsilon(row: RowFigures) -> float:
    """Return the epsilon of the hospital whose patients pay most; infinity without privacy."""
    return max(row.epsilon_spent.values(), default=math.inf)
