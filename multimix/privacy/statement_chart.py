"""Epsilon spent against its limit, as inline SVG bars: one for each run, one for the lifetime.

Colours are classes that the page's style sheet defines; a bar above its limit and one without end differ by pattern
and word as well as by colour, so that a black and white print tells them apart.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from markupsafe import Markup

from multimix.bars import scale
from multimix.privacy.statement_records import Epsilon, Statement
from multimix.privacy.statement_sections import upwards

_WIDTH: Final = 720
_LEFT: Final = 190  # for the names
_RIGHT: Final = 96  # for the figures
_ROW: Final = 26
_BAR: Final = 13
_TOP: Final = 8
_FOOT: Final = 40
_MOST_RUNS: Final = 12
_LONGEST_NAME: Final = 26
_HATCH: Final = Markup(
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="bad" width="3" height="6"/></pattern></defs>'
)


class Level(NamedTuple):
    """One bar: whose, how much of it, and up to where it may go."""

    name: str
    epsilon: Epsilon
    private: Epsilon
    limit: float


def chart_of(statement: Statement) -> Markup:
    """Draw the newest runs and the lifetime."""
    runs = [
        Level(run.job_id, run.account.epsilon, run.account.epsilon_private, run.account.limit)
        for run in statement.runs[-_MOST_RUNS:]
    ]
    lifetime = statement.lifetime
    return _draw([*runs, Level("Lifetime", lifetime.epsilon, lifetime.epsilon_private, lifetime.limit)])


def _draw(levels: Sequence[Level]) -> Markup:
    finite = [level.private for level in levels if level.private != "infinity"]
    ticks = scale(max([*finite, *(level.limit for level in levels)]) * 1.02, whole=False)
    bottom = _TOP + _ROW * len(levels)
    parts = [_HATCH, *(_tick(tick, ticks[-1], bottom) for tick in ticks)]
    parts += [_level(level, _TOP + _ROW * number, ticks[-1]) for number, level in enumerate(levels)]
    parts.append(_caption(bottom))
    title = "Epsilon spent by run and over the lifetime, each beside its limit"
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="spent"><title id="spent">{}</title>{}</svg>'
    ).format(_WIDTH, bottom + _FOOT, title, Markup("").join(parts))


def _x(value: float, top: float) -> float:
    return _LEFT + value / top * (_WIDTH - _LEFT - _RIGHT)


def _tick(value: float, top: float, bottom: float) -> Markup:
    return Markup(
        '<line class="rule" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
        '<text class="tick middle" x="{0:.1f}" y="{3}">{4:.6g}</text>'
    ).format(_x(value, top), _TOP, bottom, bottom + 14, value)


def _level(level: Level, y: float, top: float) -> Markup:
    infinite = level.epsilon == "infinity"
    private = top if level.private == "infinity" else level.private
    kind = "bad" if private > level.limit else "mark"
    middle = y + _ROW / 2
    figure = upwards(level.epsilon)
    words = f"{level.name}: epsilon {figure}, limit {level.limit:g}"
    return Markup(
        '<g><title>{words}</title><text class="name end" x="{name_x}" y="{text_y:.1f}">{name}</text>{endless}'
        '<rect class="{kind}" x="{left}" y="{bar_y:.1f}" width="{width:.2f}" height="{bar}"/>'
        '<line class="limit" x1="{limit:.2f}" x2="{limit:.2f}" y1="{limit_top:.1f}" y2="{limit_end:.1f}"/>'
        '<text class="name" x="{figure_x}" y="{text_y:.1f}">{figure}</text></g>'
    ).format(
        words=words,
        name_x=_LEFT - 8,
        text_y=middle + 4,
        name=_short(level.name),
        endless=_endless(middle) if infinite else "",
        kind=kind,
        left=_LEFT,
        bar_y=middle - _BAR / 2,
        width=max(1.0, _x(private, top) - _LEFT),
        bar=_BAR,
        limit=_x(level.limit, top),
        limit_top=y + 2,
        limit_end=y + _ROW - 2,
        figure_x=_WIDTH - _RIGHT + 10,
        figure=figure,
    )


def _endless(middle: float) -> Markup:
    return Markup('<rect class="endless" fill="url(#hatch)" x="{}" y="{:.1f}" width="{}" height="{}"/>').format(
        _LEFT, middle - _BAR / 2, _WIDTH - _LEFT - _RIGHT, _BAR
    )


def _caption(bottom: float) -> Markup:
    return Markup('<text class="tick middle" x="{}" y="{}">epsilon; the upright strokes are the limits</text>').format(
        (_LEFT + _WIDTH - _RIGHT) / 2, bottom + 32
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
