"""Line and stacked-column charts as inline SVG text.

Written out by hand because the report is rewritten after every round: matplotlib takes seconds, these take
milliseconds, follow light and dark mode through the page's CSS, and print sharp. Colours are classes (`c0` to
`c7`, dash patterns `d1`, `d2` beyond eight) that server/report.html defines; every text is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

PALETTE_SIZE = 8

_WIDTH, _HEIGHT = 380, 208
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 34
_MAX_X_LABELS = 12
_MAX_MARKED_POINTS = 40
_DASHES = 3


@dataclass(frozen=True)
class Line:
    """One series: `points` are (x, y) with y None where the figure is undefined; the line breaks there."""

    name: str
    slot: int
    points: tuple[tuple[int, float | None], ...]


@dataclass(frozen=True)
class Column:
    """One stacked column; `note` instead of parts marks a column that has none and says why."""

    x: int
    parts: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True)
class _Frame:
    """Maps data to drawing units."""

    x_low: float
    x_high: float
    y_ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def colour_class(slot: int) -> str:
    """Return the CSS classes of a series: its colour, and a dash pattern once colours repeat."""
    dash = slot // PALETTE_SIZE % _DASHES
    return f"c{slot % PALETTE_SIZE}" + (f" d{dash}" if dash else "")


_LARGEST = 1e12  # a figure above it is drawn at the edge


def nice_ticks(low: float, high: float, *, intervals: int = 4) -> tuple[float, ...]:
    """Return evenly spaced numbers, 1, 2 or 5 times a power of ten apart, that enclose low and high."""
    low, high = max(low, -_LARGEST), min(high, _LARGEST)
    raw = _span(low, high) / intervals
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(i * step for i in range(first, max(last, first + 1) + 1))


def _span(low: float, high: float) -> float:
    """Return the distance to cover; a readable one where the values are all but equal."""
    size = max(abs(low), abs(high))
    if high - low > 1e-6 * max(size, 1e-9):
        return high - low
    return 0.1 * size if size > 1e-9 else 1.0  # noqa: PLR2004  (below it a figure is drawn as zero)


def line_chart(lines: Sequence[Line], *, label: str) -> Markup:
    """Draw lines over rounds; the empty string where no figure is defined."""
    values = [y for line in lines for _, y in line.points if y is not None]
    if not values:
        return Markup("")
    xs = sorted({x for line in lines for x, _ in line.points})
    margin = 0.0 if len(xs) > 1 else 0.5
    frame = _Frame(x_low=xs[0] - margin, x_high=xs[-1] + margin, y_ticks=nice_ticks(min(values), max(values)))
    drawn = Markup("").join(_line(line, frame) for line in lines)
    words = f"{label} by round. " + " ".join(_in_words(line) for line in lines)
    return _svg(_grid(frame) + _x_labels(frame, xs) + drawn, words)


def column_chart(
    columns: Sequence[Column],
    *,
    slots: Mapping[str, int],
    label: str,
    unit: str = "",
    top: float | None = None,
) -> Markup:
    """Draw stacked columns over rounds; `slots` gives the parts' colours and their order from the bottom."""
    if not columns:
        return Markup("")
    highest = top or max(sum(column.parts.values()) for column in columns) or 1.0
    xs = [column.x for column in columns]
    frame = _Frame(x_low=min(xs) - 0.5, x_high=max(xs) + 0.5, y_ticks=nice_ticks(0.0, highest))
    body = Markup("").join(_column(column, slots, frame, unit) for column in columns)
    words = f"{label} by round, stacked; totals are in the table."
    return _svg(_grid(frame) + body + _x_labels(frame, xs), words)


def _svg(body: Markup, label: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, label.strip(), body
    )


def _grid(frame: _Frame) -> Markup:
    rule = Markup('<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
    text = Markup('<text class="tick end" x="{}" y="{:.1f}">{}</text>')
    return Markup("").join(
        rule.format(_LEFT, _WIDTH - _RIGHT, frame.y(tick), frame.y(tick))
        + text.format(_LEFT - 6, frame.y(tick) + 3.5, f"{tick:.6g}")
        for tick in frame.y_ticks
    )


def _x_labels(frame: _Frame, xs: Sequence[int]) -> Markup:
    every = math.ceil(len(xs) / _MAX_X_LABELS)
    text = Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>')
    labels = [text.format(frame.x(x), _HEIGHT - _BOTTOM + 15, x) for x in xs[::every]]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return Markup("").join([*labels, text.format(middle, _HEIGHT - 4, "round")])


def _line(line: Line, frame: _Frame) -> Markup:
    group = Markup('<g class="line {}" data-series="{}">{}{}</g>')
    marks = _marks(line, frame) if len(line.points) <= _MAX_MARKED_POINTS else Markup("")
    return group.format(colour_class(line.slot), line.name, _path(line, frame), marks)


def _path(line: Line, frame: _Frame) -> Markup:
    pen, commands = "M", []
    for x, y in line.points:
        if y is None:
            pen = "M"
        else:
            commands.append(f"{pen}{frame.x(x):.1f} {frame.y(y):.1f}")
            pen = "L"
    return Markup('<path d="{}"/>').format("".join(commands))


def _marks(line: Line, frame: _Frame) -> Markup:
    mark = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.2"><title>{}, round {}: {}</title></circle>')
    return Markup("").join(
        mark.format(frame.x(x), frame.y(y), line.name, x, f"{y:.4g}") for x, y in line.points if y is not None
    )


def _in_words(line: Line) -> str:
    defined = [y for _, y in line.points if y is not None]
    return f"{line.name}: {defined[0]:.3g} to {defined[-1]:.3g}." if defined else f"{line.name}: undefined."


def _column(column: Column, slots: Mapping[str, int], frame: _Frame, unit: str) -> Markup:
    width = (frame.x(1.0) - frame.x(0.0)) * 0.78
    left = frame.x(column.x) - width / 2
    if column.note:
        return _noted_column(column, left, width)
    blocks, base = [], 0.0
    for name in sorted(column.parts, key=lambda part: slots[part]):
        value = column.parts[name]
        place = (left, frame.y(base + value), width, frame.y(base) - frame.y(base + value))
        blocks.append(_block(name, slots[name], place, f"{name}, round {column.x}: {value:.3g}{unit}"))
        base += value
    return Markup("").join(blocks)


def _block(name: str, slot: int, place: tuple[float, float, float, float], tip: str) -> Markup:
    return Markup(
        '<rect class="block {}" data-series="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.2f}">'
        "<title>{}</title></rect>"
    ).format(colour_class(slot), name, *place, tip)


def _noted_column(column: Column, left: float, width: float) -> Markup:
    """Draw an empty dashed column whose tooltip says why it has no parts."""
    return Markup(
        '<rect class="noted" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>round {}: {}</title></rect>'
    ).format(left, _TOP, width, _HEIGHT - _TOP - _BOTTOM, column.x, column.note)
