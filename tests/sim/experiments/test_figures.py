"""The figures: what is drawn is to scale, stands in its place, and no text can become markup."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_summary import estimate, paper_summary, row, summary

from sim.experiments.drawing import Mark, frame_of, series
from sim.experiments.figures import (
    EpsilonPoint,
    budget_charts,
    budget_legend,
    cells_of,
    epsilon_chart,
    epsilon_legend,
    row_slots,
)

AUROC, ACCURACY, NIH, JSRT, MONTGOMERY = range(5)


def drawn(chart):
    return ET.fromstring(chart.svg)


def by_class(root, name):
    return [each for each in root.iter() if name in (each.get("class") or "").split()]


def titles(root, name):
    return [each.find("title").text for each in by_class(root, name)]


def place(mark):
    return tuple(map(float, re.findall(r"[\d.]+", mark.get("transform"))))


def chart_of(figures, group="100-10", name="modern"):
    (chart,) = budget_charts(summary("paper", [row(name, group, figures)]))
    return drawn(chart)


def test_the_cells_go_from_few_labels_and_masks_to_all():
    mixed = ("Full-Full", "1000-50", "100-Full", "100-10")
    assert cells_of(paper_summary(mixed)) == ["100-10", "100-Full", "1000-50", "Full-Full"]


def test_every_row_has_a_mark_in_every_cell_to_which_it_belongs():
    svg = drawn(budget_charts(paper_summary(("1000-50", "100-10")))[JSRT])
    own = [mark for mark in by_class(svg, "mark") if "hollow" not in mark.get("class")]
    cells = [re.search(r" in (\S+): ", mark.find("title").text)[1] for mark in own]
    assert cells.count("100-10") == cells.count("1000-50") == 7  # u-net has no labels, and stands in both
    middle = max(place(m)[0] for m, cell in zip(own, cells, strict=True) if cell == "100-10")
    assert all(place(m)[0] > middle for m, cell in zip(own, cells, strict=True) if cell == "1000-50")


def test_no_two_marks_of_ours_stand_on_each_other():
    for chart in budget_charts(paper_summary()):
        own = [place(m)[0] for m in by_class(drawn(chart), "mark") if "hollow" not in m.get("class")]
        assert min(b - a for a, b in pairwise(sorted(own))) > 6.4  # a marker's width


def test_a_mark_and_its_whisker_are_to_scale():
    svg = chart_of({"jsrt/test": {"dice": {"value": 0.9, "low": 0.8, "high": 1.0}}})
    ticks = {float(t.text): float(t.get("y")) - 3.5 for t in by_class(svg, "end")}  # the digits stand 3.5 lower
    low, high = ticks[min(ticks)], ticks[max(ticks)]

    def y(value):
        return low + (value - min(ticks)) / (max(ticks) - min(ticks)) * (high - low)

    (mark,) = by_class(svg, "mark")
    assert place(mark)[1] == pytest.approx(y(0.9), abs=0.1)
    bottom, top = re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", by_class(svg, "whisker")[0].get("d")).groups()
    assert (float(bottom), float(top)) == pytest.approx((y(0.8), y(1.0)), abs=0.1)


def test_what_was_published_is_a_hollow_mark_of_the_same_row_and_modern_has_none():
    svg = drawn(budget_charts(paper_summary(("100-10",)))[AUROC])
    assert "published, paper in 100-10: 0.806" in titles(svg, "hollow")
    assert not [title for title in titles(svg, "hollow") if "modern" in title]
    (group,) = [g for g in by_class(svg, "series") if "published, paper" in "".join(g.itertext())]
    ours, theirs = group.findall("{*}path")[2:]
    assert ours.get("d") == theirs.get("d")


def test_baselines_are_dashed_lines_across_their_cell():
    svg = drawn(budget_charts(paper_summary())[AUROC])
    assert [title.partition(":")[0] for title in titles(svg, "level")] == [
        f"{name} in {cell}" for cell in ("100-10", "1000-50") for name in ("majority", "thumbnail-ridge")
    ]
    assert not [title for title in titles(svg, "mark") if title.startswith("majority")]


def test_a_chart_without_figures_is_not_drawn():
    assert budget_charts(summary("paper", [])) == []
    undefined = {"jsrt/test": {"auroc": {"value": None}, "dice": estimate(0.9)}}
    assert len(budget_charts(summary("paper", [row("modern", "100-10", undefined)]))) == 1


def test_rows_of_one_task_are_drawn_where_no_other_is_finished():
    svg = chart_of({"jsrt/test": {"dice": estimate(0.9)}}, group="0-10", name="u-net")
    assert titles(svg, "mark")[0] == "u-net in 0-10: 0.900 (0.880 to 0.920)."


def test_many_cells_make_a_wider_chart():
    narrow = budget_charts(paper_summary(("100-10",)))[AUROC]
    wide = budget_charts(paper_summary([f"{a}-{b}" for a in ("100", "1000", "Full") for b in ("10", "50", "Full")]))
    assert wide[AUROC].width > 2 * narrow.width


def test_the_figure_says_in_words_what_it_shows():
    words = drawn(budget_charts(paper_summary(("100-10",)))[MONTGOMERY]).get("aria-label")
    assert words.startswith("Dice on montgomery, cross-domain, by labels and masks.")
    assert "modern in 100-10: 0.852 (0.832 to 0.872)." in words  # 0.962, less 0.05 for the labels and 0.06


def test_the_legend_names_what_is_drawn_and_nothing_else():
    text = "".join(ET.fromstring(budget_legend(paper_summary())).itertext())
    assert text.startswith("modernpaper")
    assert "mean-mask" in text
    assert "published" in text
    assert budget_legend(summary("paper", [])) == '<ul class="legend"></ul>'


def test_every_text_is_escaped():
    bad = '<script>"&'
    one = summary("paper", [row(bad, "100-10", {"jsrt/test": {"dice": estimate(0.9)}})])
    assert "<script>" not in budget_charts(one)[0].svg + budget_legend(one)
    assert bad in drawn(budget_charts(one)[0]).get("aria-label")
    points = [EpsilonPoint(1.0, 0.5, None, None, bad)]
    assert "<script>" not in epsilon_chart(points, heading=bad).svg + epsilon_legend(points)


def test_thirty_three_series_differ_in_colour_or_shape():
    frame = frame_of(400, [(40, 390)], [0.0, 1.0])
    looks = [series(frame, slot, [Mark(50, 0.5, None, None, "")]) for slot in range(33)]
    assert len(set(looks)) == 33
    assert list(row_slots(paper_summary()))[:2] == ["modern", "paper"]  # beside each other in every cell


def points(*epsilons, name="site"):
    return [EpsilonPoint(epsilon, 0.6 + 0.01 * i, 0.5, 0.7, name) for i, epsilon in enumerate(epsilons)]


def test_epsilon_is_on_a_logarithmic_axis_with_no_privacy_behind_a_gap_on_the_right():
    svg = drawn(epsilon_chart(points(math.inf, 1, 2, 4, 8), heading="AUROC"))
    at = {title.split(":")[0].split(", ")[1]: place(m)[0] for m, title in _marked(svg)}
    steps = [at[f"epsilon {2 * e}"] - at[f"epsilon {e}"] for e in (1, 2, 4)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    (first_end, second_start) = re.search(r"H([\d.]+)M([\d.]+)", by_class(svg, "rule")[0].get("d")).groups()
    assert at["epsilon 8"] < float(first_end) < float(second_start) < at["not private"]


def _marked(svg):
    return [(mark, mark.find("title").text) for mark in by_class(svg, "mark")]


def test_the_point_without_privacy_is_not_joined_to_the_others():
    svg = drawn(epsilon_chart(points(1, 8, math.inf), heading="AUROC"))
    private, public = by_class(svg, "line")
    assert private.get("d").count("L") == 1
    assert public.get("d").count("L") == 0
    assert len(by_class(svg, "level")) == 1  # its height across the private part


def test_several_series_stand_beside_each_other():
    svg = drawn(epsilon_chart([*points(1, 8), *points(1, 8, name="other")], heading="AUROC"))
    assert len({place(mark)[0] for mark, _ in _marked(svg)}) == 4


def test_one_epsilon_or_none_but_infinity_can_be_drawn():
    assert len(_marked(drawn(epsilon_chart(points(3.0), heading="x")))) == 1
    only = drawn(epsilon_chart(points(math.inf), heading="x"))
    assert [title.split(",")[1] for _, title in _marked(only)] == [" not private: 0.600 (0.500 to 0.700)"]
    assert epsilon_chart([], heading="x") is None


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_what_is_no_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match="positive"):
        epsilon_chart(points(epsilon), heading="x")


@given(st.lists(st.floats(min_value=1e-3, max_value=1e4), min_size=1, max_size=6))
def test_every_epsilon_is_inside_the_axis(epsilons):
    svg = drawn(epsilon_chart(points(*epsilons), heading="x"))
    places = [float(t.get("x")) for t in by_class(svg, "middle")[:-1]]  # the last says what the axis is
    assert 2 <= len(places) <= 9
    assert all(places[0] - 0.2 <= place(mark)[0] <= places[-1] + 0.2 for mark, _ in _marked(svg))
