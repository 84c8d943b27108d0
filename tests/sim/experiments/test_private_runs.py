"""The points of utility against epsilon: of which runs, and of which not."""

from math import inf
from pathlib import Path

import pytest

from server.results import RESULTS_FILE, read_results, write_results
from sim.experiments.figures import epsilon_chart
from sim.experiments.private_runs import privacy_points

RUNS = Path(__file__).parents[3] / "docs" / "runs"
AUROC, DICE = "AUROC on kermany", "Dice on montgomery, never trained on"
PRIVATE, OPEN = read_results(RUNS / "dp8"), read_results(RUNS / "open")


def points_of(folder, **runs):
    for name, results in runs.items():
        (folder / name).mkdir()
        write_results(results, folder / name)
    return privacy_points(folder)


def changed(results, **config):
    """The same results of another configuration; a dash of a key is written as in Python."""
    values = {key.replace("_", "-"): value for key, value in config.items()}
    return results.model_copy(update={"config": results.config | values})


def test_the_runs_of_this_checkout_have_two_charts_of_three_points():
    found = privacy_points(RUNS)
    assert found.keys() == {AUROC, DICE}
    for heading, site, metric in ((AUROC, "kermany", "auroc"), (DICE, "montgomery", "dice")):
        named = {3.0: "dp3", 8.0: "dp8", inf: "open"}  # `cxr` is of another preset and image size
        expected = {epsilon: read_results(RUNS / run).sites[site].metrics[metric] for epsilon, run in named.items()}
        assert {point.epsilon: point.value for point in found[heading]} == expected
        assert {point.name for point in found[heading]} == {site}
        assert len(found[heading]) == 3


def test_the_hospital_said_to_be_never_trained_on_was_held_out_of_every_run_of_this_checkout():
    for name in ("dp3", "dp8", "open"):
        assert read_results(RUNS / name).sites["montgomery"].role == "held-out"


def test_the_charts_of_this_checkout_can_be_drawn():
    for heading, points in privacy_points(RUNS).items():
        assert "not private" in epsilon_chart(points, heading=heading).svg


@pytest.mark.parametrize("runs", [{}, {"private": PRIVATE}, {"open": OPEN}], ids=["none", "private", "open"])
def test_without_a_run_of_either_kind_there_is_no_chart(tmp_path, runs):
    assert points_of(tmp_path, **runs) == {}


def test_where_there_is_no_folder_there_is_no_chart(tmp_path):
    assert privacy_points(tmp_path / "nowhere") == {}


def test_what_is_no_run_is_passed_over(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("no run")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / RESULTS_FILE).write_text('{"schema_version": 1')
    assert len(points_of(tmp_path, private=PRIVATE, open=OPEN)[AUROC]) == 2


@pytest.mark.parametrize(
    "config",
    [
        {"preset": "modern"},
        {"image_size": 96},
        {"hold_out": "nih14"},
        {"labels": "200"},
        {"masks": "50"},
        {"data": "other"},
        {"row": "umtl"},
        {"width": 4},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_run_of_another_task_is_not_compared(tmp_path, config):
    assert points_of(tmp_path, private=PRIVATE, open=changed(OPEN, **config)) == {}


def test_a_private_run_that_no_open_one_is_like_has_no_point(tmp_path):
    alone = changed(PRIVATE, image_size=96, dp_epsilon=1.0)
    found = points_of(tmp_path, private=PRIVATE, open=OPEN, alone=alone)
    assert sorted(point.epsilon for point in found[AUROC]) == [8.0, inf]


@pytest.mark.parametrize("dp", ["site", "both"])
def test_noise_for_whole_hospitals_is_neither_private_nor_open_here(tmp_path, dp):
    found = points_of(tmp_path, private=PRIVATE, open=OPEN, other=changed(PRIVATE, dp=dp, dp_epsilon=1.0))
    assert sorted(point.epsilon for point in found[AUROC]) == [8.0, inf]


def test_a_figure_that_is_undefined_has_no_point(tmp_path):
    kermany = PRIVATE.sites["kermany"].model_copy(update={"metrics": {"auroc": None}})
    private = PRIVATE.model_copy(update={"sites": PRIVATE.sites | {"kermany": kermany}})
    found = points_of(tmp_path, private=private, open=OPEN)
    assert [point.epsilon for point in found[AUROC]] == [inf]
    assert sorted(point.epsilon for point in found[DICE]) == [8.0, inf]


def test_a_run_that_is_still_going_on_or_was_stopped_has_no_point(tmp_path):
    going = changed(PRIVATE, dp_epsilon=1.0).model_copy(update={"status": "running", "sites": {}})
    found = points_of(tmp_path, private=PRIVATE, open=OPEN, going=going)
    assert sorted(point.epsilon for point in found[AUROC]) == [8.0, inf]


def test_a_run_without_the_hospital_of_a_chart_has_no_point_in_it(tmp_path):
    others = {name: site for name, site in PRIVATE.sites.items() if name != "kermany"}
    without = changed(PRIVATE, dp_epsilon=1.0).model_copy(update={"sites": others})
    found = points_of(tmp_path, private=PRIVATE, open=OPEN, without=without)
    assert sorted(point.epsilon for point in found[AUROC]) == [8.0, inf]
    assert sorted(point.epsilon for point in found[DICE]) == [1.0, 8.0, inf]
