from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy.batches import SIZE, batch_of, networks, share
from torch import nn

from multimix.config import preset, row
from multimix.errors import Refused
from multimix.network import new_network
from multimix.privacy.dp_sgd import (
    PrivateStep,
    check_independence,
    clipped_sum,
    noised,
    one_patient_at_a_time,
    patient_gradients,
    step_sum,
)

PATIENTS = torch.tensor([0, 1, 2, 2, 0, 1, 3, 3, 0, 1, 3])  # of 2 labelled, 6 unlabelled, 3 masked images


def step_of(preset_name="modern", *, row_name="multimix", trainable=lambda _name: True, threshold=0.5):
    method = row(row_name, preset(preset_name, image_size=SIZE, width=2))
    objective = method.objective.model_copy(update={"confidence_threshold": threshold})
    student, teacher = networks(method)
    names = tuple(name for name, _ in student.named_parameters() if trainable(name))
    return PrivateStep(student, teacher, objective, names, ramp=0.8)


def farthest(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("preset_name", ["paper", "modern"])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e6])
def test_the_clipped_sum_equals_one_patient_at_a_time(preset_name, clip_norm):
    step, batch = step_of(preset_name), batch_of(labelled=2, unlabelled=6, masked=3)
    brute = one_patient_at_a_time(step, [share(batch, PATIENTS, number) for number in range(4)], clip_norm)
    scale = max(float(value.abs().max()) for value in brute.values())
    assert farthest(step_sum(step, [(batch, PATIENTS)], clip_norm), brute) <= 1e-12 * max(1.0, scale)


@pytest.mark.parametrize("chunk_images", [1, 2, 3, 5])
def test_the_size_of_a_chunk_changes_nothing(chunk_images):
    step, batch = step_of(), batch_of(labelled=2, unlabelled=6, masked=3)
    whole = step_sum(step, [(batch, PATIENTS)], 1.0, chunk_images=100)
    assert farthest(step_sum(step, [(batch, PATIENTS)], 1.0, chunk_images=chunk_images), whole) <= 1e-12


def test_patients_in_one_chunk_or_in_two_give_the_same_sum():
    step, batch = step_of(), batch_of(labelled=2, unlabelled=6, masked=3)
    parts = [(share(batch, PATIENTS // 2, n), PATIENTS[n == PATIENTS // 2] - 2 * n) for n in range(2)]
    assert farthest(step_sum(step, parts, 0.5), step_sum(step, [(batch, PATIENTS)], 0.5)) <= 1e-12


def test_removing_a_patient_moves_the_sum_by_at_most_the_clip_norm():
    step, batch = step_of(), batch_of(labelled=2, unlabelled=6, masked=3)
    whole = step_sum(step, [(batch, PATIENTS)], 0.01)
    for gone in range(4):
        rest = [
            (share(batch, PATIENTS, n), torch.zeros(int((n == PATIENTS).sum()), dtype=torch.long))
            for n in range(4)
            if n != gone
        ]
        without = step_sum(step, rest, 0.01)
        moved = np.sqrt(sum(float((whole[name] - without[name]).square().sum()) for name in whole))
        assert 0.0 < moved <= 0.01 * (1 + 1e-9)


def test_a_frozen_module_has_no_gradient_and_the_others_are_clipped_alone():
    step = step_of(trainable=lambda name: name.startswith("classifier"))
    batch = batch_of(labelled=2, unlabelled=0, masked=0)
    total = step_sum(step, [(batch, torch.tensor([0, 1]))], 1e-3)
    assert set(total) == {"classifier.linear.weight", "classifier.linear.bias"}
    single = step_sum(step, [(share(batch, torch.tensor([0, 1]), 0), torch.tensor([0]))], 1e-3)
    assert np.sqrt(sum(float(value.square().sum()) for value in single.values())) == pytest.approx(1e-3)


def test_nobody_drawn_gives_zeros():
    total = step_sum(step_of(), [], 1.0)
    assert all(float(value.abs().max()) == 0.0 for value in total.values())


def test_a_patient_without_a_task_contributes_zero():
    step = step_of(row_name="enc")  # no decoder, no semi-supervision
    batch = batch_of(labelled=0, unlabelled=2, masked=1)
    total = step_sum(step, [(batch, torch.tensor([0, 1, 2]))], 1.0)
    assert all(float(value.abs().max()) == 0.0 for value in total.values())


@given(st.lists(st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3), min_size=1, max_size=5), st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_no_clipped_gradient_is_longer_than_the_clip_norm(rows, clip_norm):
    gradients = torch.tensor(rows, dtype=torch.float64)
    for number in range(len(rows)):
        alone = clipped_sum(
            {"a": gradients[number : number + 1, :1], "b": gradients[number : number + 1, 1:]}, clip_norm
        )
        assert float(torch.cat([alone["a"], alone["b"]]).norm()) <= clip_norm * (1 + 1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_patient_whose_gradient_is_not_finite_contributes_zero(value):
    gradients = {"a": torch.tensor([[0.3, 0.0], [value, 1.0]]), "b": torch.tensor([[0.4], [1.0]])}
    total = clipped_sum(gradients, 1.0)
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


def test_gradients_of_a_patient_are_the_same_beside_any_other():
    step, batch = step_of(), batch_of(labelled=2, unlabelled=6, masked=3)
    other = batch_of(labelled=2, unlabelled=6, masked=3, seed=1)
    mine = PATIENTS == 0
    a, u = 2, 6

    def mixed(field, part):
        keep = mine[part].view(-1, *[1] * (getattr(batch, field).dim() - 1))
        return torch.where(keep, getattr(batch, field), getattr(other, field))

    parts = {
        "labelled": slice(0, a),
        "weak": slice(a, a + u),
        "strong": slice(a, a + u),
        "masked": slice(a + u, None),
        "masks": slice(a + u, None),
    }
    seeds = tuple(
        x if own else y for x, y, own in zip(batch.dropout_seeds, other.dropout_seeds, mine.tolist(), strict=True)
    )
    changed = replace(batch, dropout_seeds=seeds, **{field: mixed(field, part) for field, part in parts.items()})
    before, after = (patient_gradients(step, each, PATIENTS) for each in (batch, changed))
    assert max(float((before[n][0] - after[n][0]).abs().max()) for n in before) <= 1e-12
    assert max(float((before[n][1] - after[n][1]).abs().max()) for n in before) > 1e-6
