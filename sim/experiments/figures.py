"""The figures of an experiment: what a row is worth at each budget of labels and masks, and at each epsilon.

The published points beside them are table 2 of Haque et al. (ISBI 2021) and the areas under its ROC curves.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from markupsafe import Markup

from sim.experiments.cells import Column, cells_of, estimate_of, in_cell, published_value
from sim.experiments.drawing import (
    BASE,
    LEFT,
    RIGHT,
    Chart,
    Frame,
    Mark,
    below,
    drawing,
    frame_of,
    legend,
    level,
    series,
    slots_of,
)
from sim.experiments.inference import Estimate
from sim.experiments.published import beside
from sim.experiments.summary import RowFigures, Summary

PANELS: Final = (
    Column("AUROC on chex224, in-domain", "chex224/test", "auroc", ("in_domain", "auroc")),
    Column("Accuracy on chex224, in-domain", "chex224/test", "accuracy", ("in_domain", "accuracy")),
    Column("AUROC on nih14, cross-domain", "nih14/test", "auroc", ("cross_domain", "auroc")),
    Column("Dice on jsrt, in-domain", "jsrt/test", "dice", ("in_domain", "dice")),
    Column("Dice on montgomery, cross-domain", "montgomery/test", "dice", ("cross_domain", "dice")),
)
BASELINES: Final = {"majority": "r0", "mean-mask": "r1", "thumbnail-ridge": "r2"}  # row to the kind of its line
_FIRST: Final = ("modern", "paper")  # have the clearest colours
_NARROW: Final = 400  # width of a chart of few cells
_LEAST_CELL: Final = 64  # room for the name of a cell
_SLOT: Final = 13  # of a row in a cell
_MARGIN: Final = 8  # of the rows of a cell from its edges
_BESIDE: Final = 4.5  # of a published point from ours

_EPSILON_WIDTH: Final = 400
_PAD: Final = 16  # of points from both ends of the epsilons
_INFINITE: Final = 78  # width of the part for no privacy
_GAP: Final = 14
_DODGE: Final = 6
_MOST_NAMED: Final = 7


class _Placed(NamedTuple):
    """A row's figure in a cell."""

    row: RowFigures
    cell: int
    estimate: Estimate
    value: float


@dataclass(frozen=True)
class EpsilonPoint:
    """What a figure is at an epsilon (infinity: not private), with its interval where there is one."""

    epsilon: float
    value: float
    low: float | None
    high: float | None
    name: str  # of the series; its points are joined


def row_slots(summary: Summary) -> dict[str, int]:
    """Return the trained rows, each with the number of its colour and shape."""
    names = {row.row: None for row in summary.rows if row.row not in BASELINES}
    return slots_of([*(name for name in _FIRST if name in names), *names])


def budget_legend(summary: Summary) -> Markup:
    """Return what is what in the charts of `budget_charts`."""
    lines = {name: kind for name, kind in BASELINES.items() if any(row.row == name for row in summary.rows)}
    paper = any(beside(row.row, row.group) and row.row != "modern" for row in summary.rows)
    return legend(row_slots(summary), levels=lines, hollow="published, of the row of its colour" if paper else "")


def budget_charts(summary: Summary) -> list[Chart]:
    """Draw the figures of the paper's task cell by cell, with intervals, baselines and what was published."""
    charts = [_budget_chart(summary, column) for column in PANELS]
    return [chart for chart in charts if chart is not None]


def _budget_chart(summary: Summary, column: Column) -> Chart | None:
    cells = cells_of(summary)
    placed = list(_placed(summary, cells, column))
    slots = {name: slot for name, slot in row_slots(summary).items() if any(each.row.row == name for each in placed)}
    if not placed:
        return None
    width = LEFT + RIGHT + len(cells) * max(_LEAST_CELL, 2 * _MARGIN + _SLOT * len(slots))
    frame = _budget_frame(max(_NARROW, width), placed, cells, column)
    bands = _bands(frame, len(cells))
    parts = [_cell_names(cells, bands, frame)]
    parts += [_reference(each, cells, bands, frame) for each in placed if each.row.row in BASELINES]
    for place, name in enumerate(dict.fromkeys(each.row.row for each in placed if each.row.row in slots)):
        slot, share = slots[name], (place + 0.5) / len(slots)
        marks = [m for each in placed if each.row.row == name for m in _marks(each, cells, bands, share, column)]
        parts.append(series(frame, slot, marks))
    words = f"{column.title}, by labels and masks. " + " ".join(_in_words(each, cells) for each in placed)
    return Chart(column.title, drawing(frame, parts, words), frame.width)


def _placed(summary: Summary, cells: Sequence[str], column: Column) -> Iterator[_Placed]:
    """Yield what there is to draw, a row's own figures from the left to the right."""
    for number, cell in enumerate(cells):
        for row in summary.rows:
            estimate = estimate_of(row, column)
            if estimate is not None and estimate.value is not None and in_cell(row.group, cell):
                yield _Placed(row, number, estimate, estimate.value)


def _budget_frame(width: int, placed: Sequence[_Placed], cells: Sequence[str], column: Column) -> Frame:
    values: list[float | None] = []
    for each in placed:
        published = published_value(each.row, cells[each.cell], column)
        values += [each.value, each.estimate.low, each.estimate.high, published]
    return frame_of(width, [(LEFT, width - RIGHT)], values)


def _bands(frame: Frame, count: int) -> list[tuple[float, float]]:
    """Return where each cell begins and ends."""
    each = (frame.width - LEFT - RIGHT) / count
    return [(LEFT + number * each, LEFT + (number + 1) * each) for number in range(count)]


def _cell_names(cells: Sequence[str], bands: Sequence[tuple[float, float]], frame: Frame) -> Markup:
    names = [below(sum(band) / 2, cell) for cell, band in zip(cells, bands, strict=True)]
    borders = "".join(f"M{start:.1f} {frame.y(frame.ticks[-1]):.1f}V{BASE}" for start, _ in bands[1:])
    between = Markup('<path class="rule" d="{}"/>').format(borders)
    return Markup("").join([between, *names, below((LEFT + frame.width - RIGHT) / 2, "labels-masks", line=1)])


def _reference(each: _Placed, cells: Sequence[str], bands: Sequence[tuple[float, float]], frame: Frame) -> Markup:
    kind = BASELINES[each.row.row]
    return level(frame, bands[each.cell], each.value, kind=kind, tip=_in_words(each, cells))


def _marks(
    each: _Placed, cells: Sequence[str], bands: Sequence[tuple[float, float]], share: float, column: Column
) -> Iterator[Mark]:
    """Yield a row's figure in a cell, and beside it what was published; `share` is its place among the rows."""
    left, right = bands[each.cell]
    x = left + _MARGIN + share * (right - left - 2 * _MARGIN)
    yield Mark(x, each.value, each.estimate.low, each.estimate.high, _in_words(each, cells))
    published = published_value(each.row, cells[each.cell], column)
    if published is not None:
        tip = f"published, {each.row.row} in {cells[each.cell]}: {published:.3f}"
        yield Mark(x + _BESIDE, published, None, None, tip, hollow=True)


def _in_words(each: _Placed, cells: Sequence[str]) -> str:
    return f"{each.row.row} in {cells[each.cell]}: {_with_interval(each.value, each.estimate.low, each.estimate.high)}."


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def epsilon_chart(points: Sequence[EpsilonPoint], *, heading: str) -> Chart | None:
    """Draw a figure against epsilon on a logarithmic axis; without privacy at the right edge, behind a gap.

    Raises:
        ValueError: an epsilon is not positive.
    """
    if any(not point.epsilon > 0 for point in points):
        raise ValueError("an epsilon is positive, or infinite")
    if not points:
        return None
    axis = _EpsilonAxis.of(points)
    frame = frame_of(_EPSILON_WIDTH, axis.spans, [v for p in points for v in (p.value, p.low, p.high)])
    slots = slots_of(point.name for point in points)
    parts = [axis.drawn()]
    for name, slot in slots.items():
        own = sorted((point for point in points if point.name == name), key=lambda point: point.epsilon)
        parts += _epsilon_series(own, slot, (slot - (len(slots) - 1) / 2) * _DODGE, axis, frame)
    words = f"{heading}, by epsilon. " + " ".join(f"{_epsilon_in_words(point)}." for point in points)
    return Chart(heading, drawing(frame, parts, words), frame.width)


def epsilon_legend(points: Sequence[EpsilonPoint]) -> Markup:
    """Return what is what in `epsilon_chart`."""
    return legend(slots_of(point.name for point in points))


@dataclass(frozen=True)
class _EpsilonAxis:
    """Where epsilons are: the private ones between two of the `named`, the others in a part of their own."""

    named: tuple[float, ...]
    spans: tuple[tuple[float, float], ...]
    infinite: bool

    @classmethod
    def of(cls, points: Sequence[EpsilonPoint]) -> "_EpsilonAxis":
        finite = [point.epsilon for point in points if math.isfinite(point.epsilon)]
        infinite = len(finite) < len(points)
        right = _EPSILON_WIDTH - RIGHT
        last = (right - _INFINITE, right)
        if not finite:
            return cls((), (last,), infinite)
        first = (LEFT, last[0] - _GAP) if infinite else (LEFT, right)
        return cls(_enclosing(min(finite), max(finite)), (first, last) if infinite else (first,), infinite)

    def x(self, epsilon: float) -> float:
        if math.isinf(epsilon):
            return sum(self.spans[-1]) / 2
        left, right = self.spans[0][0] + _PAD, self.spans[0][1] - _PAD
        low, high = math.log(self.named[0]), math.log(self.named[-1])
        return left + (math.log(epsilon) - low) / (high - low) * (right - left)

    def drawn(self) -> Markup:
        names = [below(self.x(epsilon), f"{epsilon:g}") for epsilon in self.named]
        if self.infinite:
            names += [below(self.x(math.inf), "∞"), below(self.x(math.inf), "not private", line=1)]
        if self.named:
            names.append(below(sum(self.spans[0]) / 2, "epsilon", line=1))
        return Markup("").join(names)


def _enclosing(low: float, high: float) -> tuple[float, ...]:
    """Return two or more of 1, 2, 5, 10, 20 ... that enclose both; powers of ten where those are too many."""
    start = math.floor(math.log10(low)) - 1
    decades = range(start, math.ceil(math.log10(high)) + 2)
    for factors in ((1, 2, 5), (1,)):
        steps = [factor * 10.0**decade for decade in decades for factor in factors]
        first = max(i for i, step in enumerate(steps) if step <= low * (1 + 1e-9))
        last = min(i for i, step in enumerate(steps) if step >= high * (1 - 1e-9))
        chosen = steps[first : last + 1] if last > first else steps[first - 1 : last + 2]
        if len(chosen) <= _MOST_NAMED:
            break
    return tuple(chosen)


def _epsilon_series(
    points: Sequence[EpsilonPoint], slot: int, shift: float, axis: _EpsilonAxis, frame: Frame
) -> Iterator[Markup]:
    """Yield the private points, joined, and the one without privacy by itself, with its level across the chart."""
    marks = {
        private: [
            Mark(axis.x(p.epsilon) + shift, p.value, p.low, p.high, _epsilon_in_words(p))
            for p in points
            if math.isfinite(p.epsilon) == private
        ]
        for private in (True, False)
    }
    for mark in marks[False] if axis.named else ():
        yield level(frame, axis.spans[0], mark.value, kind=f"c{slot}", tip=mark.tip)
    yield series(frame, slot, marks[True])
    for mark in marks[False]:
        yield series(frame, slot, [mark])


def _epsilon_in_words(point: EpsilonPoint) -> str:
    where = "not private" if math.isinf(point.epsilon) else f"epsilon {point.epsilon:g}"
    return f"{point.name}, {where}: {_with_interval(point.value, point.low, point.high)}"
