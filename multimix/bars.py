"""Bar charts as inline SVG text: upright ones for histograms, a single level one for a table's cell.

Written out by hand so that a page needs no plotting library, no script and no file beside it. Colours are classes
(`mark`, `rule`, `tick`) that the page's style sheet defines, so charts follow light and dark mode; every text is
escaped.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from markupsafe import Markup

_WIDTH: Final = 380
_HEIGHT: Final = 200
_LEFT: Final = 48
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 38
_MOST_NAMES: Final = 9
_INTERVALS: Final = 4
_GAP: Final = 0.12  # of a bar's width, between two
_LEAST_HEIGHT: Final = 1.5  # so that one among thousands is seen


class Bar(NamedTuple):
    """One bar: its name (of a histogram its lower bound), its value and what a tooltip says of it."""

    name: str
    value: float
    tip: str = ""


def bar_chart(bars: Sequence[Bar], *, label: str, axis: str = "", unit: str = "", bounds: bool = False) -> Markup:
    """Draw upright bars from 0; the empty string where there is nothing to draw.

    Args:
        bars: From left to right; values that are finite and not negative.
        label: What the chart shows, for who cannot see it.
        axis: What the names are, written below them.
        unit: Written behind the numbers of the scale.
        bounds: Whether names are the bars' lower bounds, and so belong below their left edges.

    Raises:
        ValueError: a value is negative or not finite.
    """
    if any(not math.isfinite(bar.value) or bar.value < 0 for bar in bars):
        raise ValueError("bars are drawn from 0 upwards")
    highest = max((bar.value for bar in bars), default=0.0)
    if not highest:
        return Markup("")
    ticks = scale(highest, whole=all(float(bar.value).is_integer() for bar in bars))
    parts = [_grid(ticks, unit), *_bars(bars, ticks[-1]), *_names(bars, bounds=bounds), _caption(axis)]
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, label, Markup("").join(parts)
    )


def level_bar(share: float) -> Markup:
    """Draw one level bar that fills this share, 0 to 1, of the place it is given; numbers stand beside it.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share}")
    return Markup(
        '<svg class="level" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="mark" width="{:.2f}" height="8"/></svg>'
    ).format(100 * share)


def scale(highest: float, *, whole: bool) -> tuple[float, ...]:
    """Return numbers from 0, 1, 2 or 5 times a power of ten apart, that enclose a positive value; whole on demand."""
    raw = highest / _INTERVALS
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    return tuple(number * step for number in range(math.ceil(highest / step - 1e-9) + 1))


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)


def _grid(ticks: Sequence[float], unit: str) -> Markup:
    line = Markup('<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
    text = Markup('<text class="tick end" x="{}" y="{:.1f}">{}</text>')
    heights = [_y(tick, ticks[-1]) for tick in ticks]
    return Markup("").join(
        line.format(_LEFT, _WIDTH - _RIGHT, y, y) + text.format(_LEFT - 6, y + 3.5, f"{tick:.6g}{unit}")
        for tick, y in zip(ticks, heights, strict=True)
    )


def _bars(bars: Sequence[Bar], top: float) -> list[Markup]:
    rect = Markup('<rect class="mark" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>')
    width = (_WIDTH - _LEFT - _RIGHT) / len(bars)
    drawn = []
    for number, bar in enumerate(bars):
        if bar.value:
            height = max(_LEAST_HEIGHT, _y(0, top) - _y(bar.value, top))
            left = _LEFT + (number + _GAP / 2) * width
            tip = bar.tip or f"{bar.name}: {bar.value:.6g}"
            drawn.append(rect.format(left, _y(0, top) - height, width * (1 - _GAP), height, tip))
    return drawn


def _names(bars: Sequence[Bar], *, bounds: bool) -> list[Markup]:
    text = Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>')
    width = (_WIDTH - _LEFT - _RIGHT) / len(bars)
    every = math.ceil(len(bars) / _MOST_NAMES)
    shift = 0.0 if bounds else 0.5
    return [
        text.format(_LEFT + (number + shift) * width, _HEIGHT - _BOTTOM + 15, bar.name)
        for number, bar in enumerate(bars)
        if number % every == 0
    ]


def _caption(axis: str) -> Markup:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return Markup('<text class="tick middle" x="{}" y="{}">{}</text>').format(middle, _HEIGHT - 5, axis)
