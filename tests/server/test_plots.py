import re
import xml.etree.ElementTree as ET
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.plots import Column, Line, colour_class, column_chart, line_chart, nice_ticks

FINITE = st.floats(-1e9, 1e9)


@given(a=FINITE, b=FINITE)
def test_ticks_enclose_the_data_at_even_distances(a, b):
    low, high = sorted((a, b))
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    tolerance = max(1e-6 * max(abs(low), abs(high)), 1e-9)  # figures below are drawn as zero
    assert 2 <= len(ticks) <= 8
    assert step > 0
    assert ticks[0] <= low + tolerance
    assert ticks[-1] >= high - tolerance
    assert all(abs(y - x - step) <= tolerance for x, y in pairwise(ticks))


def test_ticks_are_one_two_or_five_times_a_power_of_ten():
    assert nice_ticks(0.0, 4.0) == (0, 1, 2, 3, 4)
    assert nice_ticks(0.0, 8.0) == (0, 2, 4, 6, 8)
    assert nice_ticks(0.0, 150.0) == (0, 50, 100, 150)


def test_a_line_breaks_where_the_figure_is_undefined():
    chart = line_chart([Line("jsrt", 0, ((1, 0.2), (2, 0.4), (3, None), (4, 0.6), (5, 0.8)))], label="Dice")
    pen = re.search(r'<path d="([^"]+)"', chart)
    assert re.sub(r"[\d. -]", "", pen.group(1)) == "MLML"


def test_a_chart_without_a_defined_figure_is_left_out():
    assert line_chart([Line("jsrt", 0, ((1, None),))], label="Dice") == ""
    assert column_chart([], slots={}, label="Seconds") == ""


def test_a_higher_figure_is_drawn_higher():
    chart = ET.fromstring(line_chart([Line("jsrt", 0, ((1, 0.2), (2, 0.9)))], label="Dice"))
    first, second = (float(circle.get("cy")) for circle in chart.iter("circle"))
    assert second < first


def test_stacked_blocks_are_as_tall_as_their_values():
    column = Column(1, {"a": 0.25, "b": 0.75})
    chart = ET.fromstring(column_chart([column], slots={"a": 0, "b": 1}, label="Share", top=1.0))
    a, b = (float(block.get("height")) for block in chart.iter("rect"))
    assert abs(b / a - 3.0) < 0.01


def test_a_noted_column_says_why_it_is_empty():
    chart = ET.fromstring(column_chart([Column(3, {}, "nobody taught it")], slots={}, label="Share", top=1.0))
    assert chart.find("rect/title").text == "round 3: nobody taught it"


@given(name=st.text(st.characters(codec="utf-8", categories=("L", "P", "S")), min_size=1))
def test_a_name_cannot_break_out_of_the_drawing(name):
    chart = ET.fromstring(line_chart([Line(name, 0, ((1, 0.5),))], label="Dice"))
    assert chart.find("g").get("data-series") == name


def test_a_repeated_colour_gets_another_dash():
    assert len({colour_class(slot) for slot in range(24)}) == 24
