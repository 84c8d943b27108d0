"""Two pictures of an evidence page, as inline SVG: epsilon from above and from below, and the budget over time.

Colours are classes that the page's style sheet defines. Every kind of mark has its own shape, so that a black and white
print tells them apart.
"""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from markupsafe import Markup

from multimix.audit.evidence.figures import Figure
from multimix.audit.evidence.records import Evidence
from multimix.audit.recompute import Row
from multimix.bars import scale

_WIDTH: Final = 720
_LEFT: Final = 170  # for the names
_RIGHT: Final = 30
_ROW: Final = 34
_BAR: Final = 12
_TOP: Final = 44  # below the legend
_FOOT: Final = 36
_MOST_RUNS: Final = 12
_LONGEST_NAME: Final = 22
_PLOT_LEFT: Final = 48
_PLOT_HEIGHT: Final = 250
_MOST_POINTS: Final = 400
_AFTER: Final = 24  # right of the last time, so that its step is seen
_HATCH: Final = Markup(
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="bad" width="3" height="6"/></pattern></defs>'
)
_ENDLESS: Final = Markup('<rect class="endless" fill="url(#hatch)" x="{}" y="{:.1f}" width="{}" height="{}"/>')
_SVG: Final = Markup(
    '<div class="wide"><svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></div>'
)
_TEXT: Final = Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>')
_BAR_MARK: Final = Markup('<rect class="mark" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>')
_PRICE: Final = Markup('<path class="price" d="M{0:.1f} {1:.1f}l5 -6l5 6l-5 6z" transform="translate(-5 0)"/>')
_BOUND: Final = Markup('<path class="bound" d="M{:.1f} {:.1f}l5 9h-10z"/>')
_CEILING: Final = Markup('<line class="ceiling" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>')
_LIMIT: Final = Markup('<line class="limit" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>')
_RULE: Final = Markup('<line class="rule" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')


def epsilon_chart(figures: Sequence[Figure]) -> Markup:
    """Draw the newest runs and the lifetime: claims as bars, what was recomputed, the bounds and their ceilings."""
    shown = [*figures[:-1][-_MOST_RUNS:], *figures[-1:]]
    values = [value for figure in shown for value in _values(figure) if math.isfinite(value)]
    if not values or max(values) <= 0:
        return Markup("")
    ticks = scale(max(values) * 1.02, whole=False)
    bottom = _TOP + _ROW * len(shown)
    parts = [_HATCH, *_legend()]
    for tick in ticks:
        x = _x(tick, ticks[-1])
        parts += [_RULE.format(x, x, _TOP, bottom), _TEXT.format("tick middle", x, bottom + 14, f"{tick:.6g}")]
    for number, figure in enumerate(shown):
        parts.append(Markup("").join(_level(figure, _TOP + _ROW * number, ticks[-1])))
    parts.append(_TEXT.format("tick middle", (_LEFT + _WIDTH - _RIGHT) / 2, bottom + 30, "epsilon"))
    label = "Epsilon claimed, recomputed and bounded from below, by run and over the lifetime"
    return _SVG.format(_WIDTH, bottom + _FOOT, label, Markup("").join(parts))


def _values(figure: Figure) -> Iterator[float]:
    yield from (figure.claimed_private, figure.recomputed_private or 0.0, figure.limit or 0.0)
    yield from (*figure.bounds, *figure.ceilings)


def _x(value: float, top: float) -> float:
    return _LEFT + min(value, top) / top * (_WIDTH - _LEFT - _RIGHT)


def _level(figure: Figure, y: float, top: float) -> Iterator[Markup]:
    middle = y + _ROW / 2
    yield _TEXT.format("name end", _LEFT - 8, middle + 4, _short(figure.name))
    if math.isinf(figure.worst):
        yield _ENDLESS.format(_LEFT, middle - _BAR / 2, _WIDTH - _LEFT - _RIGHT, _BAR)
    claimed = _x(figure.claimed_private, top)
    yield _BAR_MARK.format(_LEFT, middle - _BAR / 2, max(1.0, claimed - _LEFT), _BAR)
    if figure.recomputed_private is not None:
        yield _PRICE.format(_x(figure.recomputed_private, top), middle)
    if figure.limit is not None:
        yield _LIMIT.format(_x(figure.limit, top), middle - 11, middle + 11)
    for ceiling in figure.ceilings:
        yield _CEILING.format(_x(ceiling, top), middle - 11, middle + 11)
    for bound in figure.bounds:
        yield _BOUND.format(_x(bound, top), middle + 1)


def _legend() -> Iterator[Markup]:
    keys = (
        (0, _BAR_MARK.format(0, 8, 14, 10), "claimed"),
        (90, _PRICE.format(92, 13), "recomputed"),
        (196, _BOUND.format(200, 8), "lower bound by an audit"),
        (366, _CEILING.format(370, 5, 21), "ceiling of that audit"),
        (520, _LIMIT.format(524, 5, 21), "limit of the site"),
    )
    for left, mark, text in keys:
        yield mark
        yield _TEXT.format("tick", left + (20 if left == 0 else 14), 17, text)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def budget_chart(evidence: Evidence) -> Markup:
    """Draw epsilon of the lifetime's part with noise over time: as claimed, as recomputed, and the limit."""
    rows = evidence.recomputation.rows if evidence.recomputation else ()
    if not rows:
        return Markup("")
    plain = [run.non_private_since for run in evidence.runs if run.non_private_since]
    times = [datetime.fromisoformat(row.entry.time) for row in rows]
    axis = _Axis(min([*times, *plain]), max([*times, *plain]), _highest(rows, evidence))
    parts = [*_grid(axis), *_limits(axis, evidence)]
    kept = sorted({*range(0, len(rows), math.ceil(len(rows) / _MOST_POINTS)), len(rows) - 1})
    claims = [(times[number], rows[number].entry.claimed_private) for number in kept]
    prices = [(times[number], rows[number].private.high) for number in kept]
    parts += [_steps("claim", claims, axis), _steps("again", prices, axis)]
    parts += [_exposure(axis, time) for time in plain]
    label = "Epsilon of the lifetime over time, as claimed and as recomputed, below its limit"
    return _SVG.format(_WIDTH, _PLOT_HEIGHT, label, Markup("").join(parts))


def _highest(rows: Sequence[Row], evidence: Evidence) -> float:
    values = [value for row in rows for value in (row.entry.claimed_private, row.private.high)]
    values += [limit for run in evidence.runs for limit in run.limit_lifetime]
    return scale(max([0.01, *(value for value in values if math.isfinite(value))]) * 1.05, whole=False)[-1]


class _Axis:
    """Where a time and an epsilon lie in the plot."""

    bottom = _PLOT_HEIGHT - 44
    top = 30

    def __init__(self, first: datetime, last: datetime, highest: float) -> None:
        self.first, self.last, self.highest = first, last, highest

    def x(self, time: datetime) -> float:
        whole = (self.last - self.first).total_seconds()
        part = (time - self.first).total_seconds() / whole if whole > 0 else 0.5
        return _PLOT_LEFT + part * (_WIDTH - _PLOT_LEFT - 16 - _AFTER)

    def y(self, epsilon: float) -> float:
        return self.bottom - min(epsilon, self.highest) / self.highest * (self.bottom - self.top)


def _grid(axis: _Axis) -> Iterator[Markup]:
    for tick in scale(axis.highest, whole=False):
        yield _RULE.format(_PLOT_LEFT, _WIDTH - 16, axis.y(tick), axis.y(tick))
        yield _TEXT.format("tick end", _PLOT_LEFT - 6, axis.y(tick) + 4, f"{tick:.6g}")
    yield _TEXT.format("tick", _PLOT_LEFT, axis.bottom + 18, f"{axis.first:%Y-%m-%d %H:%M}")
    if axis.last > axis.first:
        yield _TEXT.format("tick end", axis.x(axis.last), axis.bottom + 18, f"{axis.last:%Y-%m-%d %H:%M}")
    yield Markup('<line class="claim" x1="{0}" x2="{1}" y1="14" y2="14"/>').format(_PLOT_LEFT, _PLOT_LEFT + 22)
    yield _TEXT.format("tick", _PLOT_LEFT + 28, 18, "claimed")
    yield Markup('<line class="again" x1="{0}" x2="{1}" y1="14" y2="14"/>').format(_PLOT_LEFT + 90, _PLOT_LEFT + 112)
    yield _TEXT.format("tick", _PLOT_LEFT + 118, 18, "recomputed")
    yield Markup('<line class="limit" x1="{0}" x2="{1}" y1="14" y2="14"/>').format(_PLOT_LEFT + 204, _PLOT_LEFT + 226)
    yield _TEXT.format("tick", _PLOT_LEFT + 232, 18, "limit of the lifetime")
    yield _TEXT.format("tick middle", _WIDTH / 2, axis.bottom + 36, "epsilon of the part with noise, over time (UTC)")


def _limits(axis: _Axis, evidence: Evidence) -> Iterator[Markup]:
    for limit in sorted({limit for run in evidence.runs for limit in run.limit_lifetime}):
        y = axis.y(limit)
        yield Markup('<line class="limit" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _PLOT_LEFT, _WIDTH - 16, y, y
        )


def _steps(kind: str, points: Sequence[tuple[datetime, float]], axis: _Axis) -> Markup:
    """Draw a line that holds its height until the next reservation."""
    path = [f"M{axis.x(points[0][0]):.1f} {axis.bottom:.1f}"]
    path += [f"H{axis.x(time):.1f}V{axis.y(epsilon):.1f}" for time, epsilon in points]
    path.append(f"H{axis.x(axis.last) + _AFTER:.1f}")
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(path))


def _exposure(axis: _Axis, time: datetime) -> Markup:
    x = axis.x(time)
    late = x > _WIDTH / 2
    words = "without noise: infinite from here on"
    return Markup('<line class="exposed" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
        x, axis.top, axis.bottom
    ) + _TEXT.format("tick end" if late else "tick", x - 5 if late else x + 5, axis.top + 12, words)
