"""What the figures of an experiment are drawn with: scales, whiskers, markers and a legend, as SVG text.

Written by hand as in server/plots.py. Colours (`c0` to `c10`) and lines are classes that page.html.md defines for
light and dark; a series has a shape beside its colour, so that it is told apart in grey too. Every text is escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from markupsafe import Markup

from server.plots import nice_ticks

HEIGHT: Final = 236
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 10, 36
_COLOURS: Final = 11  # with three shapes, 33 series before both repeat
BASE: Final = HEIGHT - BOTTOM  # where the scale begins
_SHAPES: Final = (
    "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0Z",
    "M-2.9-2.9h5.8v5.8h-5.8Z",
    "M0-4L4 0L0 4L-4 0Z",
)


@dataclass(frozen=True)
class Chart:
    """A drawn chart, its heading, and its width in drawing units."""

    heading: str
    svg: Markup
    width: int


class Mark(NamedTuple):
    """A figure at a place, with its interval and what a tooltip says; hollow where somebody else measured it."""

    x: float
    value: float
    low: float | None
    high: float | None
    tip: str
    hollow: bool = False


@dataclass(frozen=True)
class Frame:
    """The place of a chart: `spans` are the parts of its width that have a scale."""

    width: int
    spans: tuple[tuple[float, float], ...]
    ticks: tuple[float, ...]

    def y(self, value: float) -> float:
        """Return the height of a figure."""
        low, high = self.ticks[0], self.ticks[-1]
        return BASE - (value - low) / (high - low) * (BASE - TOP)


def frame_of(width: int, spans: Sequence[tuple[float, float]], values: Iterable[float | None]) -> Frame:
    """Return a frame whose scale encloses the values that are there."""
    known = [value for value in values if value is not None]
    return Frame(width, tuple(spans), nice_ticks(min(known), max(known)))


def drawing(frame: Frame, parts: Sequence[Markup], words: str) -> Markup:
    """Put the parts above the lines of the scale; `words` are for who cannot see it."""
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        frame.width, HEIGHT, words.strip(), _grid(frame) + Markup("").join(parts)
    )


def _grid(frame: Frame) -> Markup:
    rule = Markup('<path class="rule" d="{}"/>')
    number = Markup('<text class="tick end" x="{}" y="{:.1f}">{}</text>')
    return Markup("").join(
        rule.format("".join(f"M{a:.1f} {frame.y(tick):.1f}H{b:.1f}" for a, b in frame.spans))
        + number.format(LEFT - 6, frame.y(tick) + 3.5, f"{tick:.6g}")
        for tick in frame.ticks
    )


def below(x: float, text: str, *, line: int = 0) -> Markup:
    """Write below the scale: a name on line 0, what the axis is on line 1."""
    return Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>').format(x, BASE + 15 + 16 * line, text)


def level(frame: Frame, span: tuple[float, float], value: float, *, kind: str, tip: str) -> Markup:
    """Draw a dashed line across a part of the width."""
    return Markup('<path class="level {}" d="M{:.1f} {:.1f}H{:.1f}"><title>{}</title></path>').format(
        kind, span[0], frame.y(value), span[1], tip
    )


def series(frame: Frame, slot: int, marks: Sequence[Mark]) -> Markup:
    """Draw a series: a thin line through its figures, their whiskers, and a marker each."""
    own = [mark for mark in marks if not mark.hollow]
    line = "L".join(f"{mark.x:.1f} {frame.y(mark.value):.1f}" for mark in own)
    whiskers = "".join(_whisker(frame, mark) for mark in own)
    return Markup('<g class="series {}"><path class="line" d="{}"/><path class="whisker" d="{}"/>{}</g>').format(
        _colour(slot), f"M{line}" if line else "", whiskers, Markup("").join(_marker(frame, slot, m) for m in marks)
    )


def _colour(slot: int) -> str:
    return f"c{slot % _COLOURS}"


def _whisker(frame: Frame, mark: Mark) -> str:
    if mark.low is None or mark.high is None:
        return ""
    low, high = frame.y(mark.low), frame.y(mark.high)
    return f"M{mark.x:.1f} {low:.1f}V{high:.1f}" + "".join(f"M{mark.x - 2.5:.1f} {end:.1f}h5" for end in (low, high))


def _marker(frame: Frame, slot: int, mark: Mark) -> Markup:
    return Markup('<path class="mark{}" transform="translate({:.1f} {:.1f})" d="{}"><title>{}</title></path>').format(
        " hollow" if mark.hollow else "", mark.x, frame.y(mark.value), _shape(slot), mark.tip
    )


def _shape(slot: int) -> str:
    return _SHAPES[slot % len(_SHAPES)]


def slots_of(names: Iterable[str]) -> dict[str, int]:
    """Return the number of each name, which gives it its colour and its shape."""
    return {name: slot for slot, name in enumerate(dict.fromkeys(names))}


def legend(slots: Mapping[str, int], *, levels: Mapping[str, str] | None = None, hollow: str = "") -> Markup:
    """Return the list of series, of dashed lines (name to kind), and of what a hollow marker is."""
    entries = [
        (name, _key(_colour(slot), Markup('<path class="line" d="M1 7H25"/>'), slot)) for name, slot in slots.items()
    ]
    for name, kind in (levels or {}).items():
        entries.append((name, Markup('<path class="level {}" d="M1 7H25"/>').format(kind)))
    if hollow:
        entries.append((hollow, _key("", Markup(""), 0, " hollow")))
    item = Markup('<li><svg class="key" viewBox="0 0 26 14" aria-hidden="true">{}</svg>{}</li>')
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(item.format(key, name) for name, key in entries))


def _key(colour: str, line: Markup, slot: int, kind: str = "") -> Markup:
    return Markup('<g class="series {}">{}<path class="mark{}" transform="translate(13 7)" d="{}"/></g>').format(
        colour, line, kind, _shape(slot)
    )
