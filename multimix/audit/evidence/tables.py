"""Sections and tables of the evidence page, and how figures are written in them: bounds never better than they are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from multimix.privacy.statement_sections import upwards

MOST_ROWS: Final = 200
_FOLDED: Final = 20  # a longer table is folded
DASH: Final = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; `below` is said under it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    below: str = ""
    bad: frozenset[int] = frozenset()  # rows that speak against the claim

    @property
    def folded(self) -> bool:
        """Whether it is opened by the reader."""
        return len(self.rows) > _FOLDED


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in the order of the fields."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    picture: str = ""
    facts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    tables: tuple[Table, ...] = ()
    points: tuple[str, ...] = ()


def priced(value: float | None) -> str:
    """Write an upper bound, rounded up; infinity as the word."""
    if value is None:
        return "not computed"
    return upwards("infinity" if math.isinf(value) else value)


def bounded(value: float) -> str:
    """Write a lower bound, rounded down."""
    return f"{math.floor(value * 1000) / 1000:.3f}" if math.isfinite(value) else str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", bad: Iterable[int] = ()) -> Table:
    """Return a table of at most 200 rows: those that speak against the claim, then the last."""
    every, marked = [tuple(row) for row in rows], set(bad)
    if len(every) <= MOST_ROWS:
        return Table(tuple(header), tuple(every), title, bad=frozenset(marked))
    rest = [number for number in range(len(every)) if number not in marked]
    first = sorted(marked)[:MOST_ROWS]
    shown = sorted([*first, *rest[len(rest) - (MOST_ROWS - len(first)) :]])
    below = f"{len(shown)} of {len(every):,} rows are shown, faults first; the others are in evidence.json."
    kept = frozenset(place for place, number in enumerate(shown) if number in marked)
    return Table(tuple(header), tuple(every[number] for number in shown), title, below, kept)
