"""Bar charts: what is drawn is to scale, and no text can become markup."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.bars import Bar, bar_chart, level_bar, scale


def rects(svg):
    return list(ET.fromstring(svg).iter("rect"))


def test_bars_are_as_high_as_their_values_and_an_empty_one_is_not_drawn():
    drawn = rects(bar_chart([Bar("a", 10), Bar("b", 0), Bar("c", 40)], label="counts"))
    low, high = (float(rect.get("height")) for rect in drawn)
    assert high == pytest.approx(4 * low, abs=0.05)
    bottoms = {round(float(rect.get("y")) + float(rect.get("height")), 1) for rect in drawn}
    assert len(bottoms) == 1


def test_the_highest_bar_stays_below_the_highest_line_of_the_scale():
    svg = bar_chart([Bar("a", 43)], label="counts")
    lines = [float(line.get("y1")) for line in ET.fromstring(svg).iter("line")]
    (bar,) = rects(svg)
    assert min(lines) <= float(bar.get("y")) < max(lines)


def test_one_among_thousands_is_still_seen():
    rare, _ = rects(bar_chart([Bar("a", 1), Bar("b", 10_000)], label="counts"))
    assert float(rare.get("height")) >= 1


def test_nothing_to_draw_gives_no_picture():
    assert bar_chart([], label="x") == ""
    assert bar_chart([Bar("a", 0)], label="x") == ""


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_a_value_that_has_no_height_is_refused(value):
    with pytest.raises(ValueError, match="from 0"):
        bar_chart([Bar("a", value)], label="x")


def test_every_text_is_escaped():
    bad = '<script>"&'
    svg = bar_chart([Bar(bad, 1, bad)], label=bad, axis=bad, unit=bad)
    assert "<script>" not in svg
    root = ET.fromstring(svg)
    assert root.get("aria-label") == bad
    texts = [text.text for text in root.iter("text")]
    assert texts[0] == f"0{bad}"
    assert texts[-2:] == [bad, bad]  # the bar's name and the axis
    assert [title.text for title in root.iter("title")] == [bad]


def test_of_many_bars_only_some_are_named():
    names = [f"bar {number}" for number in range(64)]
    svg = bar_chart([Bar(name, 1.5) for name in names], label="x")
    shown = [text.text for text in ET.fromstring(svg).iter("text") if text.text in names]
    assert shown[:2] == ["bar 0", "bar 8"]  # every eighth: 64 bars, at most 9 names
    assert len(shown) == 8


def test_lower_bounds_stand_below_the_left_edges_of_their_bars():
    at = {}
    for bounds in (True, False):
        svg = bar_chart([Bar("low", 1), Bar("high", 1)], label="x", bounds=bounds)
        names = {text.text: float(text.get("x")) for text in ET.fromstring(svg).iter("text")}
        at[bounds] = (names["low"], rects(svg)[0])
    left, rect = at[True]
    assert left <= float(rect.get("x"))
    centre, rect = at[False]
    assert centre == pytest.approx(float(rect.get("x")) + float(rect.get("width")) / 2, abs=0.1)


def test_a_level_bar_fills_its_share():
    assert re.search(r'width="25\.00"', level_bar(0.25))
    with pytest.raises(ValueError, match="share"):
        level_bar(1.5)


@given(st.floats(min_value=1e-6, max_value=1e9), st.booleans())
def test_a_scale_starts_at_zero_encloses_the_value_and_stays_short(highest, whole):
    ticks = scale(highest, whole=whole)
    assert ticks[0] == 0
    assert ticks[-1] >= highest * (1 - 1e-6)
    assert 2 <= len(ticks) <= 6
    steps = {round((b - a) / ticks[1], 6) for a, b in pairwise(ticks)}
    assert steps == {1.0}


@given(st.integers(min_value=1, max_value=10**9))
def test_a_scale_of_counts_has_whole_numbers(highest):
    assert all(tick.is_integer() for tick in scale(highest, whole=True))
