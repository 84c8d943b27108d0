"""Utility against epsilon: of which rows, and of which not; and what the tables say of what was spent."""

from math import inf

import pytest
from sample_summary import estimate, row, summary

from sim.experiments.figures import epsilon_chart
from sim.experiments.page_tables import privacy_table as page_table
from sim.experiments.private_runs import privacy_points, private_rows
from sim.experiments.tables import epsilons_in_words, privacy_table

AUROC, DICE = "AUROC on kermany", "Dice on montgomery, never trained on"
GROUP = "without-montgomery"


def figures(value):
    return {"kermany/test": {"auroc": estimate(value)}, "montgomery/all": {"dice": estimate(value + 0.1)}}


def private(epsilon, value, group=GROUP, **changes):
    return row(f"epsilon-{epsilon}", group, figures(value), epsilon_spent={"jsrt": 0.9 * epsilon, "kermany": epsilon})


PHANTOMS, OPEN = row("phantoms", GROUP, figures(0.5)), row("not-private", GROUP, figures(0.8))
FEDAVG = row("fedavg", GROUP, figures(0.9))


def federation(*rows):
    return summary("federated", rows, differences=[])


ALL = federation(OPEN, private(8, 0.7), FEDAVG, private(3, 0.6), PHANTOMS)


def test_rows_go_from_what_nobody_pays_for_to_what_is_not_private():
    assert [each.row for each in private_rows(ALL)] == ["phantoms", "epsilon-3", "epsilon-8", "not-private"]


def test_a_point_stands_at_the_epsilon_of_those_who_pay_most_with_its_interval():
    found = privacy_points(ALL)
    assert found.keys() == {AUROC, DICE}
    assert {(point.epsilon, point.value) for point in found[AUROC]} == {(3.0, 0.6), (8.0, 0.7), (inf, 0.8)}
    assert {point.epsilon: round(point.value, 3) for point in found[DICE]} == {3.0: 0.7, 8.0: 0.8, inf: 0.9}
    assert {point.name for point in found[DICE]} == {"montgomery"}
    assert all(point.low < point.value < point.high for points in found.values() for point in points)


def test_the_charts_can_be_drawn():
    for heading, points in privacy_points(ALL).items():
        assert "not private" in epsilon_chart(points, heading=heading).svg


@pytest.mark.parametrize(
    "rows",
    [[], [private(8, 0.7)], [OPEN], [PHANTOMS, OPEN, FEDAVG], [private(8, 0.7, "without-nih14"), OPEN]],
    ids=["none", "private", "open", "not private", "of another hospital held out"],
)
def test_without_a_run_of_either_kind_there_is_no_chart(rows):
    assert privacy_points(federation(*rows)) == {}


def test_a_figure_that_is_undefined_has_no_point():
    unscored = private(3, 0.6) | {"figures": {"kermany/test": {"auroc": {"value": None}}}}
    found = privacy_points(federation(unscored, private(8, 0.7), OPEN))
    assert sorted(point.epsilon for point in found[AUROC]) == [8.0, inf]
    assert sorted(point.epsilon for point in found[DICE]) == [8.0, inf]


def test_the_table_has_a_line_for_each_with_what_every_hospital_spent():
    text = privacy_table(ALL).splitlines()
    assert text[0] == (
        "| row | kermany AUROC | nih14 AUROC | jsrt Dice | shenzhen Dice | montgomery Dice, held out | epsilon spent |"
    )
    assert text[2] == "| phantoms | 0.500 | - | - | - | 0.600 | 0 |"
    assert text[4] == "| epsilon-8 | 0.700 | - | - | - | 0.800 | jsrt 7.200, kermany 8.000 |"
    assert text[5].endswith("| infinity |")
    assert [line.names[0] for line in page_table(ALL).lines] == [each.row for each in private_rows(ALL)]
    assert page_table(ALL).lines[2].cells[-1].text == "jsrt 7.200, kermany 8.000"


def test_an_epsilon_is_never_rounded_down():
    (only,) = private_rows(federation(row("epsilon-3", GROUP, {}, epsilon_spent={"jsrt": 2.9991})))
    assert epsilons_in_words(only) == "jsrt 3.000"


def test_a_row_that_names_no_epsilon_is_not_said_to_have_one():
    (only,) = federation(FEDAVG).rows
    assert epsilons_in_words(only) == "-"
