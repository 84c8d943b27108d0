import copy
import itertools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from support import SIZE, random_images, tiny_batch, tiny_config, tiny_network

from multimix.config import ObjectiveConfig, RowName, preset, row
from multimix.contract.messages import module_of
from multimix.network import Dropout, new_network
from multimix.objective import Batch, Losses, Slots, Targets, losses, targets
from multimix.training import step_gradients

PIXELS = SIZE * SIZE
OBJECTIVE = ObjectiveConfig(confidence_threshold=0.5)  # of two classes one always reaches it
SLOTS = Slots(labelled=2, masked=2, unlabelled_classification=3, unlabelled_segmentation=3)
TERMS = ("classification", "unlabelled_classification", "segmentation", "unlabelled_segmentation")


class PixelNetwork:
    """A fake: pixels are mask logits, the score of pneumonia is their mean and of normal 0; it counts its work."""

    def __init__(self, **changes):
        self.config = tiny_config(**{"bridge": "off", **changes})
        self.encoded, self.decoded = [], []

    def shown(self, images):
        return images

    def encode(self, images, dropout=None):
        self.encoded.append(len(images))
        return [images]

    def classify(self, levels):
        score = levels[-1].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def decode(self, levels, bridge, dropout=None):
        self.decoded.append(len(levels[0]))
        return levels[0]


def flat(*values: float) -> torch.Tensor:
    """Images of one value each."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 1, SIZE, SIZE).clone()


def fake_terms(batch: Batch, objective=OBJECTIVE, network=None) -> Losses:
    network = network or PixelNetwork()
    return losses(network, batch, targets(network, network, batch, objective), objective, None)


def only(batch: Batch, kind: str, index: int) -> Batch:
    """The batch of one of the images alone."""
    counts = {"labelled": len(batch.labelled), "unlabelled": len(batch.weak), "masked": len(batch.masked)}
    first = {"labelled": 0, "unlabelled": counts["labelled"], "masked": counts["labelled"] + counts["unlabelled"]}
    pick = {name: slice(index, index + 1) if name == kind else slice(0, 0) for name in counts}
    return Batch(
        labelled=batch.labelled[pick["labelled"]],
        labels=batch.labels[pick["labelled"]],
        masked=batch.masked[pick["masked"]],
        masks=batch.masks[pick["masked"]],
        weak=batch.weak[pick["unlabelled"]],
        strong=batch.strong[pick["unlabelled"]],
        teaches_classifier=batch.teaches_classifier[pick["unlabelled"]],
        teaches_decoder=batch.teaches_decoder[pick["unlabelled"]],
        log_prior=batch.log_prior,
        dropout_seeds=(batch.dropout_seeds[first[kind] + index],),
    )


def terms_of(network, batch: Batch, objective=OBJECTIVE) -> Losses:
    dropout = Dropout(batch.dropout_seeds, 0.25, "element")
    return losses(network, batch, targets(network, network, batch, objective), objective, dropout)


@pytest.mark.parametrize(
    ("bridge", "classes"),
    [("saliency", True), ("random", True), ("zero", True), ("off", True), ("off", False)],
)
def test_the_losses_of_an_image_are_those_of_the_image_alone(bridge, classes):
    network, batch = tiny_network(bridge=bridge, classification=classes), tiny_batch()
    objective = OBJECTIVE.model_copy(update={"cross_entropy_weight": 1.0})
    together = terms_of(network, batch, objective)
    alone = {name: [] for name in TERMS}
    for kind, count in (("labelled", 2), ("unlabelled", 3), ("masked", 2)):
        for index in range(count):
            single = terms_of(network, only(batch, kind, index), objective)
            for name in TERMS:
                alone[name].append(getattr(single, name))
    for name in TERMS:
        torch.testing.assert_close(torch.cat(alone[name]), getattr(together, name), rtol=1e-9, atol=1e-12)
    assert len(together.segmentation) == 2
    assert len(together.unlabelled_segmentation) == 2
    assert len(together.classification) == (2 if classes else 0)


def test_the_gradient_of_a_batch_is_the_sum_of_its_images_gradients():
    network, batch = tiny_network(), tiny_batch()

    def gradient(part):
        total = terms_of(network, part).total(SLOTS, OBJECTIVE)
        return torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(
                    network.parameters(),
                    torch.autograd.grad(total, list(network.parameters()), allow_unused=True),
                    strict=True,
                )
            ]
        )

    parts = [("labelled", 0), ("labelled", 1), *(("unlabelled", i) for i in range(3)), ("masked", 0), ("masked", 1)]
    singles = sum(gradient(only(batch, kind, index)) for kind, index in parts)
    torch.testing.assert_close(singles, gradient(batch), rtol=1e-8, atol=1e-11)


def test_cross_entropy_of_labelled_images_is_that_of_their_scores():
    batch = replace(tiny_batch(labelled=2, masked=0, teaches_classifier=(), teaches_decoder=()), labelled=flat(2, 3))
    expected = [math.log1p(math.exp(2.0)), math.log1p(math.exp(-3.0))]  # labels 0 and 1
    assert fake_terms(batch).classification.tolist() == pytest.approx(expected)


def test_the_log_prior_shifts_the_scores_of_labelled_images_only():
    prior = torch.tensor([0.9, 0.1]).double().log()
    batch = replace(tiny_batch(labelled=1), labelled=flat(2), log_prior=prior)
    plain = replace(batch, log_prior=torch.zeros(2).double())
    # Label normal: -log(0.9 e^0 / (0.9 e^0 + 0.1 e^2)).
    expected = math.log(0.9 + 0.1 * math.exp(2)) - math.log(0.9)
    assert fake_terms(batch).classification.tolist() == pytest.approx([expected])
    assert torch.equal(fake_terms(batch).unlabelled_classification, fake_terms(plain).unlabelled_classification)


def test_dice_loss_of_a_perfect_mask_is_near_zero_and_of_its_inverse_near_one():
    batch = tiny_batch(labelled=0, teaches_classifier=(), teaches_decoder=())
    perfect = replace(batch, masked=60 * batch.masks - 30)
    inverse = replace(batch, masked=30 - 60 * batch.masks)
    assert float(fake_terms(perfect).segmentation.max()) < 1e-6
    assert float(fake_terms(inverse).segmentation.min()) > 0.99


def test_dice_and_cross_entropy_of_an_undecided_mask_are_those_of_the_formula():
    batch = replace(tiny_batch(labelled=0, masked=1, teaches_classifier=(), teaches_decoder=()), masked=flat(0))
    lung = PIXELS / 2  # probability 0.5 everywhere, half of it on the lung; one pixel of smoothing
    dice = 1 - (2 * lung / 2 + 1) / (PIXELS / 2 + lung + 1)
    assert fake_terms(batch).segmentation.tolist() == pytest.approx([dice])
    both = OBJECTIVE.model_copy(update={"cross_entropy_weight": 2.0})
    assert fake_terms(batch, both).segmentation.tolist() == pytest.approx([dice + 2 * math.log(2)])


def test_two_empty_masks_lose_nothing():
    batch = tiny_batch(labelled=0, masked=1, teaches_classifier=(), teaches_decoder=())
    batch = replace(batch, masked=flat(-60), masks=torch.zeros_like(batch.masks))
    assert fake_terms(batch).segmentation.tolist() == pytest.approx([0.0], abs=1e-6)


def mask_pair(weak: torch.Tensor, strong: torch.Tensor) -> Batch:
    batch = tiny_batch(labelled=0, masked=0, teaches_classifier=(False,), teaches_decoder=(True,))
    return replace(batch, weak=weak, strong=strong)


def test_the_divergence_of_two_views_is_that_of_two_coins():
    found = fake_terms(mask_pair(flat(0), flat(math.log(4)))).unlabelled_segmentation
    # KL(Bernoulli(1/2) || Bernoulli(4/5)); the released code's softmax over one channel gave 0.
    assert found.tolist() == pytest.approx([0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)])


@pytest.mark.parametrize("value", [-800.0, -3.0, 0.0, 2.0, 800.0])
def test_the_divergence_of_equal_views_is_zero_in_value_and_gradient(value):
    strong = flat(value).requires_grad_()
    found = fake_terms(mask_pair(flat(value), strong)).unlabelled_segmentation
    assert found.tolist() == pytest.approx([0.0], abs=1e-12)
    found.sum().backward()
    assert float(strong.grad.abs().max()) < 1e-12


def test_the_divergence_of_unequal_views_is_positive_and_pulls_towards_the_weak_view():
    strong = random_images(1, 5).requires_grad_()
    weak = random_images(1, 6)
    found = fake_terms(mask_pair(weak, strong)).unlabelled_segmentation
    assert found.item() > 0
    found.sum().backward()
    assert torch.equal(strong.grad > 0, strong.detach() > weak)


def test_only_confident_weak_views_teach_the_classifier_and_they_teach_their_own_class():
    scores = [0.0, 1.0, -1.0, 3.0]  # confidence: sigmoid of the size, 0.5, 0.731, 0.731, 0.953
    batch = tiny_batch(labelled=0, masked=0, teaches_classifier=(True,) * 4, teaches_decoder=(False,) * 4)
    batch = replace(batch, weak=flat(*scores), strong=flat(2, 2, 2, 2))
    right, wrong = math.log1p(math.exp(-2.0)), math.log1p(math.exp(2.0))
    for threshold, expected in ((0.7, [0, right, wrong, right]), (0.9, [0, 0, 0, right]), (0.96, [0, 0, 0, 0])):
        objective = ObjectiveConfig(confidence_threshold=threshold)
        assert fake_terms(batch, objective).unlabelled_classification.tolist() == pytest.approx(expected)


def test_confidence_at_the_threshold_is_enough():
    batch = tiny_batch(labelled=0, masked=0, teaches_classifier=(True,), teaches_decoder=(False,))
    found = targets(PixelNetwork(), PixelNetwork(), replace(batch, weak=flat(0)), OBJECTIVE)
    assert found.confident.tolist() == [1.0]


def test_an_image_that_may_not_teach_the_classifier_does_not():
    batch = tiny_batch(labelled=0, masked=0, teaches_classifier=(False, True), teaches_decoder=(True, True))
    batch = replace(batch, weak=flat(5, 5), strong=flat(1, 1))
    found = fake_terms(batch).unlabelled_classification.tolist()
    assert found == pytest.approx([math.log1p(math.exp(-1.0))])


def test_pseudo_labels_of_images_that_may_not_teach_the_classifier_are_not_confident():
    batch = tiny_batch(labelled=0, masked=0, teaches_classifier=(False, True), teaches_decoder=(True, True))
    batch = replace(batch, weak=flat(5, -5))
    found = targets(PixelNetwork(), PixelNetwork(), batch, OBJECTIVE)
    assert found.confident.tolist() == [0.0, 1.0]
    assert found.pseudo_labels[1] == 0


def test_the_total_is_the_weighted_sum_over_planned_slots():
    def term(*values):
        return torch.tensor(values, dtype=torch.float64)

    found = Losses(term(1, 2), term(3), term(4, 5, 6), term(7, 8))
    slots = Slots(labelled=4, masked=5, unlabelled_classification=8, unlabelled_segmentation=10)
    objective = ObjectiveConfig(
        unlabelled_classification_weight=0.25, segmentation_weight=5, unlabelled_segmentation_weight=0.01
    )
    half = 3 / 4 + 0.5 * 0.25 * 3 / 8 + 5 * 15 / 5 + 0.5 * 0.01 * 15 / 10
    assert float(found.total(slots, objective, unlabelled_ramp=0.5)) == pytest.approx(half)
    assert float(found.total(slots, objective)) == pytest.approx(half + 0.5 * 0.25 * 3 / 8 + 0.5 * 0.01 * 15 / 10)


def test_slots_of_zero_divide_nothing_by_zero():
    nothing = Losses(*(torch.zeros(0) for _ in TERMS))
    assert float(nothing.total(Slots(0, 0, 0, 0), OBJECTIVE)) == 0.0


def test_an_image_that_is_not_confident_changes_nothing():
    objective = ObjectiveConfig(confidence_threshold=0.7)
    batch = tiny_batch(teaches_classifier=(True,), teaches_decoder=(False,))
    batch = replace(batch, weak=flat(3), strong=flat(1))
    more = replace(
        batch,
        weak=torch.cat([batch.weak, flat(0.1)]),
        strong=torch.cat([batch.strong, flat(9)]),
        teaches_classifier=torch.tensor([True, True]),
        teaches_decoder=torch.tensor([False, False]),
    )
    first, second = (fake_terms(one, objective).total(SLOTS, objective) for one in (batch, more))
    assert float(first) == float(second)


def test_the_decoder_runs_only_where_a_mask_is_used():
    network = PixelNetwork()
    batch = tiny_batch(labelled=3, masked=2)  # of three unlabelled images two teach the decoder, two the classifier
    target = targets(network, network, batch, OBJECTIVE)
    assert (network.decoded, sorted(network.encoded)) == ([2], [1, 2])  # weak views, each encoded once
    network.decoded.clear(), network.encoded.clear()
    losses(network, batch, target, OBJECTIVE, None)
    assert (network.decoded, network.encoded) == ([2 + 2], [3 + 3 + 2])


def test_unlabelled_images_cost_nothing_without_semi_supervision():
    network, objective = PixelNetwork(), ObjectiveConfig(semi_supervised=False)
    terms = fake_terms(tiny_batch(labelled=3, masked=2), objective, network)
    assert (network.encoded, network.decoded) == ([3 + 2], [2])
    assert len(terms.unlabelled_classification) == len(terms.unlabelled_segmentation) == 0


def test_a_network_without_decoder_encodes_no_masked_image():
    network = PixelNetwork(segmentation=False)
    terms = fake_terms(tiny_batch(labelled=3, masked=2), OBJECTIVE, network)
    assert network.decoded == []
    assert sum(network.encoded) == (3 + 2) + 2  # labelled and strong views; weak views
    assert len(terms.segmentation) == 0


@pytest.mark.parametrize("bridge", ["saliency", "off"])
def test_targets_carry_no_gradient_to_weak_views_or_the_teacher(bridge):
    network, teacher = tiny_network(bridge=bridge), tiny_network(1, bridge=bridge)
    batch = tiny_batch()
    batch = replace(batch, weak=batch.weak.requires_grad_())
    target = targets(network, teacher, batch, OBJECTIVE)
    tensors = [target.confident, target.mask_probability, target.strong_bridge, target.masked_bridge]
    assert not any(tensor.requires_grad for tensor in tensors if tensor is not None)
    step_gradients(network, teacher, batch, SLOTS, OBJECTIVE)
    assert batch.weak.grad is None
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in network.parameters())


def test_no_gradient_flows_through_the_bridge_into_the_classifier():
    network = tiny_network()
    batch = tiny_batch(labelled=0, teaches_classifier=(), teaches_decoder=())
    step_gradients(network, network, batch, SLOTS, OBJECTIVE)
    assert all(p.grad is None for p in network.classifier.parameters())
    assert all(p.grad is not None for p in network.decoder.parameters())


def test_weak_views_are_judged_by_the_teacher_and_bridges_made_by_the_student():
    student, teacher, batch = tiny_network(), tiny_network(1), tiny_batch()
    own = targets(student, student, batch, OBJECTIVE)
    taught = targets(student, teacher, batch, OBJECTIVE)
    swapped = targets(teacher, teacher, batch, OBJECTIVE)
    assert torch.equal(taught.mask_probability, swapped.mask_probability)
    assert not torch.equal(taught.mask_probability, own.mask_probability)
    assert torch.equal(taught.strong_bridge, own.strong_bridge)
    assert torch.equal(taught.masked_bridge, own.masked_bridge)
    assert not torch.equal(taught.masked_bridge, swapped.masked_bridge)


def test_targets_do_not_know_dropout():
    network, batch = tiny_network(), tiny_batch()
    first, second = (targets(network, network, batch, OBJECTIVE) for _ in range(2))
    assert torch.equal(first.mask_probability, second.mask_probability)
    assert torch.equal(first.mask_probability, targets(network.eval(), network, batch, OBJECTIVE).mask_probability)


def test_dropout_changes_the_losses_by_its_seeds_alone():
    network, batch = tiny_network(), tiny_batch()
    other = replace(batch, dropout_seeds=tuple(seed + 1000 for seed in batch.dropout_seeds))
    first, again, moved = (terms_of(network, one) for one in (batch, batch, other))
    for name in ("classification", "segmentation"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(moved, name))


TASKS = [
    {},
    {"bridge": "off"},
    {"bridge": "random"},
    {"segmentation": False, "bridge": "off"},
    {"classification": False, "bridge": "off"},
]


@pytest.mark.parametrize("tasks", TASKS, ids=lambda tasks: "-".join(map(str, tasks.values())) or "all")
def test_any_group_may_be_empty(tasks):
    network = tiny_network(**tasks)
    # No unlabelled images, for the class only, for the mask only, for both, for neither.
    teach = [((), ()), ((True,), (False,)), ((False,), (True,)), ((True,), (True,)), ((False,), (False,))]
    for labelled, masked, (classifier, decoder) in itertools.product((0, 1), (0, 1), teach):
        network.zero_grad()
        batch = tiny_batch(labelled, masked, classifier, decoder)
        dropout = Dropout(batch.dropout_seeds, 0.25, "channel")
        report = step_gradients(network, network, batch, SLOTS, OBJECTIVE, dropout=dropout)
        assert all(math.isfinite(value) for value in report.values())
        taught = {module_of(name) for name, p in network.named_parameters() if p.grad is not None}
        expected = set()
        if network.config.classification and (labelled or any(classifier)):
            expected |= {"encoder", "classifier"}
        if network.config.segmentation and (masked or any(decoder)):
            expected |= {"encoder", "decoder"}
        assert taught == expected  # no zero gradient either: weight decay would move what nobody taught


def test_an_entirely_empty_batch_loses_nothing_and_teaches_nothing():
    network = tiny_network()
    report = step_gradients(network, network, tiny_batch(0, 0, (), ()), SLOTS, OBJECTIVE)
    assert report == {"total": 0.0}
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("base", ["paper", "modern"])
@pytest.mark.parametrize("name", get_args(RowName))
def test_every_row_takes_a_step_and_teaches_the_modules_it_has(name, base):
    method = row(name, preset(base, image_size=SIZE, width=2))
    network = new_network(method.network, 0).double()
    report = step_gradients(network, network, tiny_batch(), SLOTS, method.objective)
    gradients = {key: p.grad for key, p in network.named_parameters()}
    assert {module_of(key) for key in gradients} == {
        "encoder",
        *(["classifier"] if method.network.classification else []),
        *(["decoder"] if method.network.segmentation else []),
    }
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients.values())
    terms = {key for key in report if key not in {"total", "pseudo_label_rate"}}
    semi, network_config = method.objective.semi_supervised, method.network
    assert terms == {
        *(["classification"] if network_config.classification else []),
        *(["segmentation"] if network_config.segmentation else []),
        *(["unlabelled_classification"] if semi and network_config.classification else []),
        *(["unlabelled_segmentation"] if semi and network_config.segmentation else []),
    }


def test_gradients_of_two_steps_add_up():
    network, batch = tiny_network(), tiny_batch()
    step_gradients(network, network, batch, SLOTS, OBJECTIVE)
    once = [p.grad.clone() for p in network.parameters()]
    step_gradients(network, network, batch, SLOTS, OBJECTIVE)
    for first, p in zip(once, network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * first)


def test_the_step_matches_the_released_formulation_where_that_one_is_right():
    """All groups through the full network, as the paper writes it, with gradients of the same loss."""
    network, batch = tiny_network(bridge="off"), tiny_batch(2, 2, (True, True), (False, False))
    plain = copy.deepcopy(network)
    report = step_gradients(network, network, batch, SLOTS, OBJECTIVE)

    images = torch.cat([batch.labelled, batch.strong, batch.weak, batch.masked])
    levels = plain.encode(images)
    scores, masks = plain.classify(levels), plain.decode(levels, None).sigmoid()
    cross_entropy = torch.nn.CrossEntropyLoss(reduction="sum")
    pseudo = scores[4:6].softmax(1).detach().argmax(1)
    overlap, lung = (masks[6:] * batch.masks).sum((1, 2, 3)), batch.masks.sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (masks[6:].sum((1, 2, 3)) + lung + 1)
    loss = cross_entropy(scores[:2], batch.labels) / 2 + 0.25 * cross_entropy(scores[2:4], pseudo) / 3
    loss = loss + 5 * dice.sum() / 2
    loss.backward()
    assert report["total"] == pytest.approx(float(loss.detach()), rel=1e-12)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_the_targets_of_an_empty_batch_are_empty():
    network = tiny_network()
    found = targets(network, network, tiny_batch(0, 0, (), ()), OBJECTIVE)
    assert isinstance(found, Targets)
    assert (len(found.confident), len(found.mask_probability), found.masked_bridge) == (0, 0, None)
