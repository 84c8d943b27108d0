"""In which cells a row stands, and which figure stands in a column of it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_summary import NAMES, estimate, paper_summary, row, summary

from sim.experiments.cells import Column, cells_of, estimate_of, in_cell, published_value
from sim.experiments.summary import RowFigures

DICE = Column("jsrt Dice", "jsrt/test", "dice", ("in_domain", "dice"))
ACCURACY = Column("chex Acc", "chex224/test", "accuracy", ("in_domain", "accuracy"))
BUDGETS = ("10", "50", "100", "1000", "Full")
cells = st.tuples(st.sampled_from(BUDGETS), st.sampled_from(BUDGETS)).map("-".join)


def figures_of(name, group, figures=None):
    return RowFigures.model_validate(row(name, group, figures or {}))


def summary_of(*groups):
    return summary("paper", [row("modern", group, {}) for group in groups])


def test_cells_go_from_few_labels_to_all_and_then_from_few_masks_to_all():
    expected = ["10-10", "10-Full", "50-10", "100-10", "1000-50", "Full-10", "Full-Full"]
    for mixed in (expected[::-1], expected[::2] + expected[1::2]):
        assert cells_of(summary_of(*mixed)) == expected  # as numbers: as text 1000 would come before 50


def test_the_budget_of_a_row_of_one_task_is_no_cell_beside_those_of_both():
    assert cells_of(summary_of("1000-0", "0-50", "1000-50", "1000-50")) == ["1000-50"]


def test_where_no_row_has_both_tasks_the_budgets_of_one_are_the_cells():
    assert cells_of(summary_of("1000-0", "0-50", "100-0")) == ["0-50", "100-0", "1000-0"]


def test_an_experiment_without_a_finished_case_has_no_cell():
    assert cells_of(summary_of()) == []


@given(cells, cells)
def test_a_row_of_both_tasks_stands_in_its_own_cell_alone(own, cell):
    assert in_cell(own, cell) == (own == cell)


@given(cells)
def test_a_row_of_one_task_stands_in_all_cells_with_its_budget(cell):
    labels, masks = cell.split("-")
    standing = {group for group in (*(f"{b}-0" for b in BUDGETS), *(f"0-{b}" for b in BUDGETS)) if in_cell(group, cell)}
    assert standing == {f"{labels}-0", f"0-{masks}"}


def test_a_budget_that_begins_like_another_is_another():
    assert not in_cell("100-0", "1000-50")
    assert not in_cell("1000-0", "100-50")


def test_every_row_of_the_paper_s_grid_stands_once_in_every_cell():
    made = paper_summary(("1000-50", "100-10"))
    for cell in cells_of(made):
        assert sorted(each.row for each in made.rows if in_cell(each.group, cell)) == sorted(NAMES)


def test_a_figure_that_was_not_scored_or_is_undefined_is_none():
    undefined = {"value": None, "low": None, "high": None}
    made = figures_of("modern", "100-10", {"jsrt/test": {"dice": undefined}, "chex224/test": {"auroc": estimate(0.9)}})
    assert estimate_of(made, DICE) is None
    assert estimate_of(made, ACCURACY) is None  # the set is there, the metric is not
    assert estimate_of(made, Column("", "nih14/test", "auroc")) is None


def test_a_figure_of_zero_is_a_figure():
    made = figures_of("modern", "100-10", {"jsrt/test": {"dice": estimate(0.0)}})
    assert estimate_of(made, DICE).value == 0.0


@pytest.mark.parametrize(
    ("name", "group", "cell", "column", "value"),
    [
        # Table 2 of Haque et al.: MultiMix with 1000 labels and 50 masks.
        ("paper", "1000-50", "1000-50", DICE, 0.970),
        ("paper", "1000-50", "1000-50", ACCURACY, 0.825),
        ("paper", "1000-50", "100-10", DICE, None),
        ("modern", "1000-50", "1000-50", DICE, None),
        ("modern-supervised", "1000-50", "1000-50", DICE, None),
        ("paper", "8-4", "8-4", DICE, None),
        ("enc", "1000-0", "1000-50", DICE, None),
    ],
)
def test_only_rows_of_the_paper_have_a_published_figure_and_only_in_their_own_cell(name, group, cell, column, value):
    assert published_value(figures_of(name, group), cell, column) == value


def test_a_row_of_one_task_has_its_published_figure_in_all_cells_of_its_budget():
    unet = figures_of("u-net", "0-50")
    values = {cell: published_value(unet, cell, DICE) for cell in ("100-50", "1000-50", "Full-50", "100-10")}
    assert values.pop("100-10") is None
    assert len(set(values.values())) == 1
    assert None not in values.values()


def test_a_column_that_the_paper_does_not_have_has_no_published_figure():
    made = figures_of("paper", "1000-50")
    assert published_value(made, "1000-50", Column("HD95", "jsrt/test", "hausdorff95_px")) is None
    assert published_value(made, "1000-50", DICE._replace(published=("in_domain", "hausdorff95_px"))) is None


def test_a_published_figure_is_of_the_domain_of_its_column():
    made = figures_of("paper", "1000-50")
    parts = ("in_domain", "cross_domain")
    values = [published_value(made, "1000-50", DICE._replace(published=(part, "dice"))) for part in parts]
    assert None not in values
    assert all(one != two for one, two in itertools.pairwise(values))
