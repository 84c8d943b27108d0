import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SIZE, Film, phantom_films, rows, tiny_network, training_data, write_films

from multimix.config import MethodConfig, NetworkConfig, ObjectiveConfig, OptimiserConfig, preset
from multimix.contract.messages import LocalWork, Teachers, module_of
from multimix.errors import InputError
from multimix.evaluation import evaluate
from multimix.network import new_network
from multimix.training import (
    add_proximal_gradient,
    learning_rate,
    resolve_device,
    train,
    unlabelled_ramp,
)
from multimix.weights import export, load_into

METHOD = MethodConfig(
    network=NetworkConfig(image_size=SIZE, width=2),
    objective=ObjectiveConfig(confidence_threshold=0.5, unlabelled_segmentation_weight=1.0),
    optimiser=OptimiserConfig(learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("training") / "store", phantom_films(24))


@pytest.fixture
def data(store):
    return training_data(
        store, labelled=rows(0, 1, 2), unlabelled=rows(3, 4, 5), masked=rows(4, 5), unmasked=rows(0, 1)
    )


def work(steps=2, first_step=0, **changes):
    return LocalWork(**{"steps": steps, "images_per_group": 2, "first_step": first_step, "total_steps": 8, **changes})


def trained(data, method=METHOD, order=None, seed=1, start=None):
    """Train from the weights `start`, or fresh ones, and return the weights and the outcome."""
    network = new_network(method.network, 0)
    if start is not None:
        load_into(network, start)
    outcome = train(network, data, method, order or work(), seed=seed)
    return export(network), outcome


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def changed_objective(**changes):
    return METHOD.model_copy(update={"objective": METHOD.objective.model_copy(update=changes)})


def test_the_same_seed_gives_the_same_weights_bit_for_bit(data):
    first, _ = trained(data)
    torch.rand(5)
    second, _ = trained(data)
    assert same(first, second)
    assert not same(first, trained(data, seed=2)[0])
    assert not same(first, export(new_network(METHOD.network, 0)))


def test_a_run_resumed_from_the_weights_between_two_rounds_ends_in_the_same_weights(data):
    method = preset("modern", image_size=SIZE, width=2)
    between, _ = trained(data, method, work(3))
    whole, _ = trained(data, method, work(3, first_step=3), start=between)
    kept = {name: value.copy() for name, value in between.items()}
    trained(data, method, work(2), seed=9)  # something else runs in the same process
    resumed, _ = trained(data, method, work(3, first_step=3), start=kept)
    assert same(whole, resumed)
    assert not same(whole, trained(data, method, work(3), start=between)[0])  # another round, other draws


def test_no_state_of_a_round_survives_it(data):
    network = new_network(METHOD.network, 0)
    train(network, data, METHOD, work(), seed=1)
    between = export(network)
    train(network, data, METHOD, work(first_step=2), seed=1)  # on the same object
    assert same(export(network), trained(data, order=work(first_step=2), start=between)[0])


@given(st.integers(0, 40), st.integers(1, 40))
def test_a_constant_learning_rate_is_constant(step, total):
    assert learning_rate(OptimiserConfig(learning_rate=0.3), step, total) == 0.3


def test_the_cosine_schedule_falls_from_the_rate_to_a_twentieth_and_stays_there():
    optimiser = OptimiserConfig(learning_rate=0.2, schedule="cosine")
    rates = [learning_rate(optimiser, step, 10) for step in range(14)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.2 * (0.05 + 0.95 / 2))
    assert rates[10:] == pytest.approx([0.01] * 4)
    assert rates[:11] == sorted(rates[:11], reverse=True)


def test_the_ramp_grows_from_little_to_full_within_its_fraction_of_the_run():
    ramp = [unlabelled_ramp(ObjectiveConfig(ramp_fraction=0.5), step, 20) for step in range(20)]
    assert ramp[0] == pytest.approx(math.exp(-5))
    assert ramp[5] == pytest.approx(math.exp(-5 / 4))
    assert ramp[10:] == [1.0] * 10
    assert ramp == sorted(ramp)


def test_without_a_ramp_the_unlabelled_weights_are_full_from_the_start():
    assert unlabelled_ramp(ObjectiveConfig(), 0, 20) == 1.0


@pytest.mark.parametrize("first_step", [0, 4, 8])
def test_a_step_uses_the_rate_of_its_place_in_the_whole_run(data, first_step):
    optimiser = OptimiserConfig(learning_rate=1e-2, schedule="cosine")
    method = METHOD.model_copy(update={"optimiser": optimiser})
    start = export(new_network(METHOD.network, 0))
    weights, _ = trained(data, method, work(1, first_step))
    furthest = max(float(np.abs(weights[name] - start[name]).max()) for name in weights)
    # Adam's first step is the learning rate in the direction of the gradient's sign.
    assert furthest == pytest.approx(learning_rate(optimiser, first_step, 8), rel=1e-2)


def test_the_ramp_scales_what_unlabelled_images_teach(data):
    unlabelled_only = training_data(data.store, unmasked=rows(0, 1, 2))
    late, early = changed_objective(), changed_objective(ramp_fraction=1.0)
    totals = [trained(unlabelled_only, method, work(1))[1].losses["total"] for method in (late, early)]
    assert totals[1] == pytest.approx(totals[0] * math.exp(-5), rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(mu=st.floats(0.001, 10))
def test_the_proximal_gradient_is_that_of_half_mu_times_the_squared_distance(mu):
    start = tiny_network(0)
    anchors = [p.detach() for p in start.parameters()]
    network = tiny_network(1)
    parameters = list(network.parameters())
    distance = sum(((p - a) ** 2).sum() for p, a in zip(parameters, anchors, strict=True))
    expected = torch.autograd.grad(mu / 2 * distance, parameters)
    parameters[0].grad = torch.ones_like(parameters[0])
    add_proximal_gradient(parameters, anchors, mu)
    torch.testing.assert_close(parameters[0].grad, expected[0] + 1)
    for parameter, gradient in zip(parameters[1:], expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_proximal_gradient_is_zero_at_the_start_of_a_round(data):
    network = tiny_network()
    add_proximal_gradient(list(network.parameters()), [p.detach() for p in network.parameters()], 5.0)
    assert all(float(p.grad.abs().max()) == 0.0 for p in network.parameters())
    assert same(trained(data, order=work(1, proximal_mu=5.0))[0], trained(data, order=work(1))[0])


def test_fedprox_keeps_the_weights_nearer_to_those_received(data):
    start = export(new_network(METHOD.network, 0))

    def moved(mu):
        weights, _ = trained(data, order=work(8, proximal_mu=mu))
        return sum(float(np.square(weights[name] - start[name]).sum()) for name in weights)

    assert moved(100.0) < 0.5 * moved(0.0)


def test_an_average_that_never_moves_is_the_incoming_model(data):
    still, incoming = changed_objective(teacher="ema", ema_decay=1.0), changed_objective(teacher="incoming")
    assert same(trained(data, still, work(3))[0], trained(data, incoming, work(3))[0])


def test_an_average_that_forgets_at_once_is_the_student(data):
    forgetful, student = changed_objective(teacher="ema", ema_decay=0.0), changed_objective(teacher="student")
    assert same(trained(data, forgetful, work(3))[0], trained(data, student, work(3))[0])


def test_the_teacher_makes_a_difference_after_the_first_step_only(data):
    methods = [changed_objective(teacher=kind) for kind in ("student", "incoming", "ema")]
    one = [trained(data, method, work(1))[0] for method in methods]
    assert same(one[0], one[1])
    assert same(one[0], one[2])
    three = [trained(data, method, work(3))[0] for method in methods]
    assert not same(three[0], three[1])
    assert not same(three[1], three[2])


def test_the_average_moves_by_one_minus_its_decay(data):
    from multimix.training import average_into

    slow, fast = tiny_network(0), tiny_network(1)
    before = copy.deepcopy(slow)
    average_into(slow, fast, 0.75)
    for old, target, new in zip(before.parameters(), fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * target)


@pytest.mark.parametrize(
    ("pools", "untaught"),
    [
        ({"labelled": rows(0, 1)}, "decoder"),
        ({"masked": rows(0, 1)}, "classifier"),
        ({"unmasked": rows(0)}, "classifier"),
    ],
)
def test_a_module_that_nobody_teaches_keeps_its_weights(store, pools, untaught):
    method = METHOD.model_copy(update={"optimiser": OptimiserConfig(learning_rate=1e-2, weight_decay=0.1)})
    start = export(new_network(METHOD.network, 0))
    weights, outcome = trained(training_data(store, **pools), method)
    for name in weights:
        assert np.array_equal(weights[name], start[name]) is (module_of(name) == untaught), name
    assert outcome.teachers[untaught] == Teachers()


def test_a_site_without_images_returns_what_it_received(store):
    weights, outcome = trained(training_data(store))
    assert same(weights, export(new_network(METHOD.network, 0)))
    assert outcome.losses == {"total": 0.0}
    assert outcome.pseudo_label_rate is None
    assert set(outcome.teachers.values()) == {Teachers()}


def test_teachers_are_distinct_patients_by_label_or_else_by_consistency(tmp_path):
    patients = ["a", "a", "b", "c", "c", "d", "e", "f"]
    films = [
        Film(film.image, patient, film.label, film.mask)
        for film, patient in zip(phantom_films(8), patients, strict=True)
    ]
    store = write_films(tmp_path / "store", films)
    data = training_data(
        store, labelled=rows(0, 1, 2), unlabelled=rows(3, 4, 1, 5), masked=rows(2, 3), unmasked=rows(4, 6, 7)
    )
    _, outcome = trained(data, order=work(8))
    assert outcome.teachers == {
        "encoder": Teachers(labelled=3, unlabelled=3),  # a, b by label and c by mask; d, e and f
        "classifier": Teachers(labelled=2, unlabelled=2),  # a and b; c and d, a having a label too
        "decoder": Teachers(labelled=2, unlabelled=2),  # b and c; e and f
    }


def test_only_patients_drawn_this_round_count_as_teachers(store):
    _, outcome = trained(training_data(store, labelled=rows(*range(24))), order=work(2))
    assert outcome.teachers["classifier"] == Teachers(labelled=4)


def test_the_report_names_the_mean_of_each_term_and_the_share_of_pseudo_labels(data):
    _, outcome = trained(data)
    terms = {"classification", "unlabelled_classification", "segmentation", "unlabelled_segmentation", "total"}
    assert set(outcome.losses) == terms
    assert all(math.isfinite(value) for value in outcome.losses.values())
    assert outcome.pseudo_label_rate == 1.0  # with a threshold of one half
    never = changed_objective(confidence_threshold=1.0)
    assert trained(data, never)[1].pseudo_label_rate == 0.0


def test_progress_counts_the_steps_of_the_round(data):
    told = []
    train(new_network(METHOD.network, 0), data, METHOD, work(3, first_step=2), seed=1, progress=told.append)
    assert told == [1, 2, 3]


@pytest.mark.parametrize("name", ["paper", "modern"])
def test_a_few_steps_on_phantoms_teach_segmentation(store, name):
    method = preset(name, image_size=SIZE, width=4)
    method = method.model_copy(update={"optimiser": OptimiserConfig(learning_rate=5e-3)})
    network = new_network(method.network, 0)
    held_out = np.arange(18, 24)
    data = training_data(
        store,
        labelled=np.arange(12),
        unlabelled=np.arange(12, 18),
        masked=np.arange(12),
        unmasked=np.arange(12, 18),
    )

    def dice():
        table = evaluate(network, store, held_out).segmentation["lung"]
        return table.dice.total / table.images

    before = dice()
    train(network, data, method, work(40, images_per_group=4, total_steps=40), seed=1)
    assert before < 0.6
    assert dice() > 0.75


def test_devices_are_those_of_this_machine():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_a_way_out():
    with pytest.raises(InputError, match="use auto or cpu"):
        resolve_device("cuda")
