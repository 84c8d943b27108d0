"""How soon a federation converges and what has travelled until then; runs written by hand, sizes of real arrays."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.contract.messages import Teachers as Taught
from multimix.contract.messages import taught_arrays
from multimix.network import new_network
from multimix.weights import export
from server.results import Results, RoundResult, SiteRound, Teachers
from sim.experiments.convergence import convergence
from tests.support import tiny_config

NETWORK = new_network(tiny_config(), 0)
EVERYONE = dict.fromkeys(("auroc", "dice"), ("a", "b", "c", "d", "both", "masks", "nothing", "absent"))
ALL = ("encoder", "classifier", "decoder")


def sent_back(*modules):
    """The bytes of the arrays that a site sends which taught these modules."""
    arrays = taught_arrays(export(NETWORK), {module: Taught(labelled=1) for module in modules})
    return sum(array.nbytes for array in arrays.values())


WHOLE = sum(array.nbytes for array in export(NETWORK).values())


def site(taught=ALL, *, state="accepted", **metrics):
    by_consistency = {module: Teachers(labelled_patients=0, unlabelled_patients=3) for module in taught}
    idle = {module: Teachers(labelled_patients=0, unlabelled_patients=0) for module in set(ALL) - set(taught)}
    return SiteRound(state=state, teachers=by_consistency | idle if state == "accepted" else {}, metrics=metrics)


def run_of(*rounds):
    """A finished run of these rounds, each a site or several by name."""
    named = [each if isinstance(each, dict) else {"a": each} for each in rounds]
    return Results(
        job_id="job",
        title="",
        status="finished",
        synthetic=True,
        privacy="none",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        rounds_planned=len(named),
        rounds=tuple(RoundResult(round=n, seconds=1.0, sites=each) for n, each in enumerate(named, 1)),
        config={},
        software={},
    )


def found_in(*rounds):
    return convergence(run_of(*rounds), NETWORK, EVERYONE)


def dice_curve(*values):
    return found_in(*(site(dice=value) for value in values))["dice"]


def test_a_round_s_figures_are_of_the_model_before_it():
    # Nearly as good as the last at the third validation: after two rounds of training.
    found = dice_curve(0.1, 0.5, 0.79, 0.6, 0.8)
    assert (found.rounds, found.last) == (2, 0.8)


def test_a_model_that_is_good_before_any_training_needs_no_round_and_no_byte():
    found = dice_curve(0.8, 0.7, 0.8)
    assert (found.rounds, found.sent_bytes) == (0, 0)


def test_a_curve_that_falls_has_reached_its_last_figure_when_it_was_above():
    assert dice_curve(0.2, 0.9, 0.5).rounds == 1


def test_exactly_95_percent_are_enough():
    assert dice_curve(0.1, 0.95, 1.0).rounds == 1


@pytest.mark.parametrize(("metric", "rounds"), [("dice", 1), ("auroc", 2)])
def test_of_an_auroc_only_what_is_above_chance_counts(metric, rounds):
    # 95 % of 0.90 is 0.855; of an AUROC, 0.5 + 95 % of 0.40 are 0.88.
    assert found_in(*(site(**{metric: value}) for value in (0.1, 0.87, 0.9)))[metric].rounds == rounds


@pytest.mark.parametrize("last", [0.5, 0.3])
def test_an_auroc_that_ends_at_chance_has_not_converged(last):
    assert found_in(site(auroc=0.9, dice=0.1), site(auroc=last, dice=0.2)).keys() == {"dice"}


def test_a_dice_of_zero_has_not_converged():
    assert found_in(site(dice=0.0), site(dice=0.0)) == {}


@pytest.mark.parametrize("rounds", [(), (site(), site()), (site(dice=None, auroc=None),)])
def test_a_run_without_validation_figures_has_no_convergence(rounds):
    assert found_in(*rounds) == {}


def test_sites_count_alike_and_those_without_the_figure_do_not_count():
    sites = {"a": site(dice=0.9), "b": site(dice=0.5), "c": site(dice=None), "d": site(state="absent")}
    assert found_in({"a": site(dice=0.1)}, sites)["dice"].last == pytest.approx(0.7)


def test_a_hospital_counts_for_its_own_task_alone():
    # Kermany's masks are drawn otherwise, and jsrt has no pneumonia.
    sites = {"kermany": site(auroc=0.9, dice=0.2), "jsrt": site(auroc=0.1, dice=0.8), "cohen": site(dice=0.1)}
    found = convergence(run_of(sites), NETWORK)
    assert (found["auroc"].last, found["dice"].last) == (0.9, 0.8)


def test_rounds_without_a_figure_are_rounds_of_training_too():
    found = found_in(site(dice=0.1), site(), site(dice=None), site(dice=0.8), site(state="absent"))["dice"]
    assert (found.rounds, found.last) == (3, 0.8)


def test_every_site_is_sent_the_whole_model_and_sends_back_what_it_taught():
    assert sent_back(*ALL) == WHOLE
    sites = {
        "both": site(dice=0.1),
        "masks": site(("encoder", "decoder")),
        "nothing": site(()),
        "absent": site(state="absent"),
    }
    expected = 4 * WHOLE + WHOLE + sent_back("encoder", "decoder")
    assert found_in(sites, site(dice=0.8))["dice"].sent_bytes == expected


def test_a_network_without_a_classifier_sends_none():
    network = new_network(tiny_config(classification=False, bridge="off"), 0)
    size = sum(array.nbytes for array in export(network).values())
    assert convergence(run_of(site(dice=0.1), site(dice=0.8)), network, EVERYONE)["dice"].sent_bytes == 2 * size


def test_each_figure_has_its_own_rounds_and_bytes():
    found = found_in(site(dice=0.8, auroc=0.6), site(dice=0.8, auroc=0.7), site(dice=0.8, auroc=0.9))
    assert (found["dice"].rounds, found["auroc"].rounds) == (0, 2)
    assert found["auroc"].sent_bytes == 2 * 2 * WHOLE


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([("dice", 0.0), ("auroc", 0.5)]))
def test_the_goal_is_reached_at_the_round_told_and_at_none_before(values, of):
    metric, chance = of
    found = found_in(*(site(**{metric: value}) for value in values)).get(metric)
    last = next((value for value in reversed(values) if value is not None), None)
    assert (found is None) == (last is None or last <= chance)
    if found is not None:
        share = [None if value is None else (value - chance) / (last - chance) for value in values]
        assert share[found.rounds] >= 0.95 - 1e-9
        assert all(each is None or each <= 0.95 + 1e-9 for each in share[: found.rounds])
        assert found.sent_bytes == found.rounds * 2 * WHOLE
