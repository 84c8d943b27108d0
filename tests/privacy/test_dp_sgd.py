from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy.batches import SIZE, batch_of, networks, share
from privacy.examples import patient_gradients
from torch import nn

from benchmarks.privacy import one_patient_at_a_time
from multimix.config import preset, row
from multimix.errors import Refused
from multimix.network import new_network
from multimix.objective import Batch
from multimix.privacy.dp_sgd import (
    PrivateStep,
    add_clipped,
    check_independence,
    noised,
    patient_gradient,
    step_sum,
)

PATIENTS = torch.tensor([0, 1, 2, 2, 0, 1, 3, 3, 0, 1, 3])  # of 2 labelled, 6 unlabelled, 3 masked images


def step_of(preset_name="modern", *, row_name="multimix", trainable=lambda _name: True, threshold=0.5):
    method = row(row_name, preset(preset_name, image_size=SIZE, width=2))
    objective = method.objective.model_copy(update={"confidence_threshold": threshold})
    student, teacher = networks(method)
    names = tuple(name for name, _ in student.named_parameters() if trainable(name))
    return PrivateStep(student, teacher, objective, names, ramp=0.8)


def everybody():
    batch = batch_of(labelled=2, unlabelled=6, masked=3)
    return batch, [[share(batch, PATIENTS, number)] for number in range(4)]


def farthest(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def length(total):
    return np.sqrt(sum(float(value.square().sum()) for value in total.values()))


@pytest.mark.parametrize("preset_name", ["paper", "modern"])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e6])
def test_the_clipped_sum_equals_brute_force(preset_name, clip_norm):
    step, (_, patients) = step_of(preset_name), everybody()
    brute = one_patient_at_a_time(step, [batches[0] for batches in patients], clip_norm)
    scale = max(float(value.abs().max()) for value in brute.values())
    assert farthest(step_sum(step, patients, clip_norm), brute) <= 1e-12 * max(1.0, scale)


@pytest.mark.parametrize("preset_name", ["paper", "modern"])
@pytest.mark.parametrize("trainable", [lambda _name: True, lambda name: "conv2" in name], ids=["all", "some"])
def test_gradients_equal_those_of_all_patients_at_once_by_vmap(preset_name, trainable):
    step, (batch, patients) = step_of(preset_name, trainable=trainable), everybody()
    at_once = patient_gradients(step, batch, PATIENTS)
    for number, batches in enumerate(patients):
        alone = patient_gradient(step, batches)
        assert max(float((at_once[name][number] - alone[name]).abs().max()) for name in alone) <= 1e-12
        assert all(float(at_once[name][number].abs().max()) == 0.0 for name in set(at_once) - set(alone))


def test_a_patient_s_images_may_come_in_parts():
    step, (batch, patients) = step_of(), everybody()
    first = torch.arange(len(PATIENTS)) < 5
    parts = [share(batch, torch.where(first == half, PATIENTS, 9), 0) for half in (True, False)]
    whole, split = patient_gradient(step, patients[0]), patient_gradient(step, parts)
    assert farthest(whole, split) <= 1e-12


def test_removing_a_patient_moves_the_sum_by_at_most_the_clip_norm():
    step, (_, patients) = step_of(), everybody()
    whole = step_sum(step, patients, 0.01)
    for gone in range(4):
        without = step_sum(step, [each for number, each in enumerate(patients) if number != gone], 0.01)
        moved = length({name: whole[name] - without[name] for name in whole})
        assert 0.0 < moved <= 0.01 * (1 + 1e-9)


def crafted(size=64, width=8):
    """Weights whose channels cancel to rounding, which the normalisation makes large: batches of other sizes differ."""
    method = preset("paper", image_size=size, width=width)
    network, generator = new_network(method.network, 0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in network.encoder.blocks:
            block.conv1.weight.copy_(block.conv1.weight[:1].clone().expand_as(block.conv1.weight))
            numbers = torch.randint(-(2**10), 2**10, block.conv2.weight.shape, generator=generator).float()
            numbers[:, -1] = -numbers[:, :-1].sum(1)
            block.conv2.weight.copy_(numbers)
    return PrivateStep(network, network, method.objective, tuple(name for name, _ in network.named_parameters()))


def labelled_only(numbers, size=64):
    images = torch.rand(12, 1, size, size, generator=torch.Generator().manual_seed(1))
    none, nobody = images[:0], torch.zeros(0, dtype=torch.bool)
    return Batch(
        labelled=images[numbers],
        labels=torch.tensor(numbers) % 2,
        masked=none,
        masks=none,
        weak=none,
        strong=none,
        teaches_classifier=nobody,
        teaches_decoder=nobody,
        log_prior=torch.zeros(2),
        dropout_seeds=tuple(numbers),
    )


def moved_by_the_first(total_of):
    whole, without = total_of(list(range(12))), total_of(list(range(1, 12)))
    return length({name: whole[name] - without[name] for name in whole})


def test_weights_made_to_blow_up_rounding_do_not_let_one_patient_move_another():
    step = crafted()
    check_independence(step, image_size=64)  # the guard cannot see it: that is why patients are computed alone
    alone = moved_by_the_first(lambda who: step_sum(step, [[labelled_only([number])] for number in who], 1.0))
    assert alone <= 1.0 + 1e-9


def test_a_frozen_module_has_no_gradient_and_the_others_are_clipped_alone():
    step = step_of(trainable=lambda name: name.startswith("classifier"))
    batch = batch_of(labelled=1, unlabelled=0, masked=0)
    total = step_sum(step, [[batch]], 1e-3)
    assert set(total) == {"classifier.linear.weight", "classifier.linear.bias"}
    assert length(total) == pytest.approx(1e-3)


def test_nobody_drawn_gives_zeros():
    total = step_sum(step_of(), [], 1.0)
    assert all(float(value.abs().max()) == 0.0 for value in total.values())


def test_a_patient_without_a_task_contributes_zero():
    step = step_of(row_name="enc")  # no decoder, no semi-supervision
    total = step_sum(step, [[batch_of(labelled=0, unlabelled=2, masked=1)]], 1.0)
    assert all(float(value.abs().max()) == 0.0 for value in total.values())


@given(st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3), st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_no_clipped_gradient_is_longer_than_the_clip_norm(values, clip_norm):
    gradient = torch.tensor(values, dtype=torch.float64)
    total = {"a": torch.zeros(1, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    add_clipped(total, {"a": gradient[:1], "b": gradient[1:]}, clip_norm)
    assert length(total) <= clip_norm * (1 + 1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_patient_whose_gradient_is_not_finite_contributes_zero(value):
    total = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}
    add_clipped(total, {"a": torch.tensor([0.3, 0.0]), "b": torch.tensor([0.4])}, 1.0)
    add_clipped(total, {"a": torch.tensor([value, 1.0]), "b": torch.tensor([1.0])}, 1.0)
    torch.testing.assert_close(total["a"], torch.tensor([0.3, 0.0]).double())
    torch.testing.assert_close(total["b"], torch.tensor([0.4]).double())


def test_noise_is_added_once_to_every_coordinate_and_the_divisor_is_the_plan_s():
    total = {"a": torch.ones(2, 2, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)}
    asked = []

    def normals(count):
        asked.append(count)
        return torch.arange(count, dtype=torch.float64)

    result = noised(total, normals, noise_multiplier=2.0, clip_norm=0.5, divisor=4.0)
    assert asked == [7]
    assert result["a"].flatten().tolist() == [(1 + n) / 4 for n in range(4)]
    assert result["b"].tolist() == [n / 4 for n in (4, 5, 6)]


@pytest.mark.parametrize("preset_name", ["paper", "modern"])
@pytest.mark.parametrize("row_name", ["multimix", "umtl", "enc-ssl", "u-net", "random-saliency", "bridge-off"])
def test_our_networks_keep_patients_apart(preset_name, row_name):
    method = row(row_name, preset(preset_name, image_size=SIZE, width=2))
    network = new_network(method.network, 0)
    names = tuple(name for name, _ in network.named_parameters())
    check_independence(PrivateStep(network, network, method.objective, names), image_size=SIZE)


@pytest.mark.parametrize("changes", [{"intensity": "equalised"}, {"bridge": "shuffled"}])
def test_what_a_network_is_shown_keeps_patients_apart(changes):
    method = preset("modern", image_size=SIZE, width=2)
    network = new_network(method.network.model_copy(update=changes), 0)
    names = tuple(name for name, _ in network.named_parameters())
    check_independence(PrivateStep(network, network, method.objective, names), image_size=SIZE)


class BatchStatistics(nn.Module):
    """Normalises over the images of the batch, without a parameter, a buffer or the name."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images, dropout):
        levels = self.inner(images, dropout)
        return [(x - x.mean(dim=0, keepdim=True)) + 0.1 * x for x in levels]


def mixing(kind):
    step = step_of()
    network = step.student
    block = network.encoder.blocks[1]
    if kind == "batch norm":
        block.norm1 = nn.BatchNorm2d(4)
    elif kind == "batch norm without parameters and statistics":
        block.norm1 = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    elif kind == "instance norm with running statistics":
        block.norm1 = nn.InstanceNorm2d(4, track_running_stats=True)
    else:
        network.encoder = BatchStatistics(network.encoder)
    network.double()
    names = tuple(name for name, _ in network.named_parameters())
    return replace(step, student=network, teacher=network, trainable=names)


@pytest.mark.parametrize(
    "kind",
    [
        "batch norm",
        "batch norm without parameters and statistics",
        "instance norm with running statistics",
        "statistics of the batch by hand",
    ],
)
def test_a_network_that_mixes_patients_is_refused(kind):
    with pytest.raises(Refused) as refusal:
        check_independence(mixing(kind), image_size=SIZE)
    assert refusal.value.reason == "network_mixes_patients"
