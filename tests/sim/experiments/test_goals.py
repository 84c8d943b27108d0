"""What was aimed at, and by how much it is reached."""

import pytest
from sample_summary import federated_summary, paper_summary

from sim.experiments import goals
from sim.experiments.goals import CHEX, JSRT, NIH, Goal, in_words, met, seeds_in_words
from sim.experiments.tables import goal_table


def found_of(summary):
    return {in_words(each.goal): each for each in met(summary)}


def figure(summary, row, group, column):
    chosen = next(each for each in summary.rows if (each.row, each.group) == (row, group))
    return chosen.figures[column.set][column.metric].value


def test_a_goal_is_missed_by_what_the_figure_is_below_it():
    summary = paper_summary()
    found = found_of(summary)["modern at 1000-50: jsrt Dice"]
    assert found.asked == 0.970
    assert found.by == pytest.approx(figure(summary, "modern", "1000-50", JSRT) - 0.970)


def test_a_missed_goal_says_so_in_the_table_and_a_reached_one_does_not():
    lines = goal_table(paper_summary()).splitlines()[2:]
    found = list(found_of(paper_summary()).values())
    assert {each.by < 0 for each in found} == {True, False}
    assert [("missed by" in line) for line in lines] == [each.by < 0 for each in found]


def test_modern_is_asked_to_be_as_good_as_paper_in_every_cell():
    words = set(found_of(paper_summary()))
    for cell in ("1000-50", "100-10"):
        for column in (CHEX, JSRT, NIH):
            assert f"modern at {cell}: {column.title} against paper" in words


def test_a_row_that_is_not_finished_has_no_goal():
    summary = paper_summary()
    left = summary.model_copy(update={"rows": tuple(row for row in summary.rows if row.row != "modern")})
    assert met(left) == []


def test_of_several_others_the_best_counts_and_a_margin_is_taken_off():
    summary = paper_summary()
    others = (("umtl", "1000-50"), ("paper", "1000-50"))
    goal = Goal(("modern", "1000-50"), CHEX, than=others, margin=0.01)
    best = max(figure(summary, row, group, CHEX) for row, group in others)

    assert goals._met(summary, goal).asked == pytest.approx(best - 0.01)


def test_the_federation_is_asked_to_beat_the_ensemble_where_a_hospital_is_held_out():
    found = found_of(federated_summary())
    assert any(words.endswith("against the ensemble of local models") for words in found)


def test_other_experiments_have_no_goals():
    assert met(paper_summary().model_copy(update={"experiment": "ablation"})) == []


def test_the_numbers_of_seeds_are_told_where_they_differ():
    summary = paper_summary()
    rows = [row.model_copy(update={"seeds": (0, 1, 2)}) if row.row == "modern" else row for row in summary.rows]
    found = found_of(summary.model_copy(update={"rows": tuple(rows)}))
    assert seeds_in_words(found["modern at 1000-50: jsrt Dice"]) == "3"
    assert seeds_in_words(found["modern at 1000-50: jsrt Dice against paper"]).startswith("3 against ")
