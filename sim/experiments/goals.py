"""What was aimed at before the runs, and by how much it is reached or missed: goals, not gates."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sim.experiments.cells import Column, cells_of, estimate_of, unseen_column
from sim.experiments.federations import LOCAL, group_without
from sim.experiments.owners import LABELLED, MASKED
from sim.experiments.scales import HELD_OUT
from sim.experiments.summary import Summary

Place = tuple[str, str]
"""Of a figure: row and group."""
_POINT: Final = 0.01  # what a federation may be below pooled training

CHEX_ACC: Final = Column("chex accuracy", "chex224/test", "accuracy")
CHEX: Final = Column("chex AUROC", "chex224/test", "auroc")
NIH: Final = Column("nih14 AUROC", "nih14/test", "auroc")
JSRT: Final = Column("jsrt Dice", "jsrt/test", "dice")
MONTGOMERY: Final = Column("montgomery Dice", "montgomery/test", "dice")
SHENZHEN: Final = Column("shenzhen Dice", "shenzhen/test", "dice")
_FIXED: Final = (
    ("1000-50", CHEX_ACC, 0.90),
    ("1000-50", CHEX, 0.95),
    ("1000-50", JSRT, 0.970),
    ("1000-50", MONTGOMERY, 0.93),
    ("1000-50", NIH, 0.60),
    ("100-10", CHEX_ACC, 0.85),
    ("100-10", JSRT, 0.955),
    ("100-10", MONTGOMERY, 0.90),
)


@dataclass(frozen=True)
class Goal:
    """A figure that should be at least a number, or at least the best of some other rows' less a margin."""

    place: Place
    column: Column
    least: float = 0.0
    than: tuple[Place, ...] = ()
    margin: float = 0.0
    other: str = ""  # what the other rows are called together


@dataclass(frozen=True)
class Met:
    """A goal, and what came out."""

    goal: Goal
    found: float
    asked: float
    seeds: tuple[int, ...]  # how many the figure is the mean of, and how many that of the other row

    @property
    def by(self) -> float:
        """How far above what was asked for; below zero it is missed."""
        return self.found - self.asked


def met(summary: Summary) -> list[Met]:
    """Return the goals of an experiment for which there are figures."""
    goals = {"paper": _paper, "federated": _federated}.get(summary.experiment)
    return [] if goals is None else [each for goal in goals(summary) if (each := _met(summary, goal)) is not None]


def in_words(goal: Goal) -> str:
    """Return what is asked of a figure."""
    row, group = goal.place
    against = ""
    if goal.than:
        against = f" against {goal.other}" + (f", less {goal.margin:g}" if goal.margin else "")
    return f"{row} at {group}: {goal.column.title}{against}"


def _met(summary: Summary, goal: Goal) -> Met | None:
    found = _value(summary, goal.place, goal.column)
    others = [each for place in goal.than if (each := _value(summary, place, goal.column)) is not None]
    if found is None or (goal.than and not others):
        return None
    value, seeds = found
    if not goal.than:
        return Met(goal, value, goal.least, (seeds,))
    best, their_seeds = max(others)
    return Met(goal, value, best - goal.margin, (seeds, their_seeds))


def _value(summary: Summary, place: Place, column: Column) -> tuple[float, int] | None:
    """Return a figure and the number of its seeds."""
    for row in summary.rows:
        estimate = estimate_of(row, column) if (row.row, row.group) == place else None
        if estimate is not None and estimate.value is not None:
            return estimate.value, len(row.seeds)
    return None


def seeds_in_words(found: Met) -> str:
    """Return how many seeds the figures are means of: one number, or two where rows have not as many."""
    return " against ".join(map(str, dict.fromkeys(found.seeds)))


def _paper(summary: Summary) -> Iterator[Goal]:
    for cell, column, least in _FIXED:
        yield Goal(("modern", cell), column, least)
    for cell in cells_of(summary):
        for column in (CHEX_ACC, CHEX, JSRT, MONTGOMERY, SHENZHEN, NIH):
            yield Goal(("modern", cell), column, than=(("paper", cell),), other="paper")


def _federated(_: Summary) -> Iterator[Goal]:
    first, group = HELD_OUT[0], group_without({HELD_OUT[0]})
    columns = (*_columns(LABELLED, "auroc", first), *_columns(MASKED, "dice", first), _unseen(first))
    for column in columns:
        yield Goal(("fedavg", group), column, than=(("pooled", group),), margin=_POINT, other="pooled")
    for column in columns:
        yield Goal(("fedavg", group), column, than=(("plain", group),), other="plain")
    for held_out in HELD_OUT:
        group, column = group_without({held_out}), _unseen(held_out)
        owners = LABELLED if held_out in LABELLED else MASKED
        locals_ = tuple((f"local-{name}", LOCAL) for name in owners if name != held_out)
        yield Goal(("fedavg", group), column, than=locals_, other="the best local model")
        yield Goal(("fedavg", group), column, than=(("ensemble", group),), other="the ensemble of local models")


def _columns(names: tuple[str, ...], metric: str, but: str) -> tuple[Column, ...]:
    title = "AUROC" if metric == "auroc" else "Dice"
    return tuple(Column(f"{name} {title}", f"{name}/test", metric) for name in names if name != but)


def _unseen(name: str) -> Column:
    column = unseen_column(name)
    return column._replace(title=f"{name} (held out) {'Dice' if column.metric == 'dice' else 'AUROC'}")
