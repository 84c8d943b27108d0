import pytest
import torch
from support import random_images, tiny_network

from multimix.saliency import view


def brute_force(network, image):
    """|d max logit / d image| of one image, by plain autograd through everything."""
    pixels = image[None].clone().requires_grad_()
    network.classify(network.encode(pixels)).max().backward()
    network.zero_grad()
    return pixels.grad.abs()


def test_raw_saliency_is_the_absolute_gradient_of_the_predicted_score():
    network, images = tiny_network(), random_images(3)
    expected = torch.cat([brute_force(network, image) for image in images])
    assert expected.max() > 0
    torch.testing.assert_close(view(network, images).saliency, expected, rtol=1e-10, atol=1e-13)


def test_saliency_agrees_with_finite_differences():
    network, image = tiny_network(), random_images(1)
    saliency = view(network, image).saliency
    y, x = divmod(int(saliency.argmax()), image.shape[-1])
    nudge, step = torch.zeros_like(image), 1e-6
    nudge[0, 0, y, x] = step
    score = [network.classify(network.encode(image + sign * nudge)).max().item() for sign in (1, -1)]
    assert float(saliency[0, 0, y, x]) == pytest.approx(abs(score[0] - score[1]) / (2 * step), rel=1e-4)


def test_scaled_saliency_is_the_raw_one_divided_by_its_own_largest_value():
    images = random_images(2)
    raw = view(tiny_network(saliency_scale="raw"), images).saliency
    scaled = view(tiny_network(saliency_scale="max"), images).saliency
    for one, other in zip(raw, scaled, strict=True):
        torch.testing.assert_close(other, one / one.max(), rtol=1e-6, atol=0)


def test_scaled_saliency_of_a_classifier_that_looks_at_nothing_is_zero():
    network = tiny_network(saliency_scale="max")
    with torch.no_grad():
        network.classifier.linear.weight.zero_()
    assert torch.equal(view(network, random_images(1)).saliency, torch.zeros(1, 1, 32, 32).double())


def test_a_look_leaves_the_gradients_of_all_parameters_as_they_were():
    network, images = tiny_network(), random_images(2)
    view(network, images)
    assert all(p.grad is None for p in network.parameters())
    for p in network.parameters():
        p.grad = torch.full_like(p, 7.0)
    view(network, images)
    assert all(bool((p.grad == 7.0).all()) for p in network.parameters())
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("bridge", ["saliency", "zero", "random", "shuffled", "off"])
@pytest.mark.parametrize("mode", [True, False])
def test_what_is_seen_is_detached_and_the_mode_stays(bridge, mode):
    network = tiny_network(bridge=bridge).train(mode)
    images = random_images(2).requires_grad_()
    seen = view(network, images)
    tensors = [*seen.levels, seen.class_logits, seen.saliency, seen.bridge]
    assert not any(tensor.requires_grad for tensor in tensors if tensor is not None)
    assert network.training is mode
    assert images.grad is None


def test_saliency_is_seen_even_where_gradients_are_off():
    network, images = tiny_network(), random_images(1)
    with torch.no_grad():
        quiet = view(network, images).saliency
    assert torch.equal(quiet, view(network, images).saliency)


def test_levels_and_scores_are_those_of_a_plain_pass():
    network, images = tiny_network(), random_images(2)
    seen, levels = view(network, images), network.encode(images)
    assert all(torch.equal(a, b) for a, b in zip(seen.levels, levels, strict=True))
    assert torch.equal(seen.class_logits, network.classify(levels))


@pytest.mark.parametrize("bridge", ["saliency", "zero", "random", "shuffled"])
def test_the_bridge_is_image_and_map_averaged_over_squares_of_eight(bridge):
    network, images = tiny_network(bridge=bridge), random_images(2)
    seen = view(network, images)
    both = torch.cat([images, seen.saliency], dim=1)
    torch.testing.assert_close(seen.bridge, both.unfold(2, 8, 8).unfold(3, 8, 8).mean(dim=(-2, -1)))
    assert seen.bridge.shape == (2, 2, 4, 4)


def test_the_controls_put_nothing_zeros_or_noise_in_the_place_of_saliency():
    images = random_images(2)
    off, zero, random = (view(tiny_network(bridge=kind), images) for kind in ("off", "zero", "random"))
    assert off.saliency is None
    assert off.bridge is None
    assert torch.equal(zero.saliency, torch.zeros_like(images))
    assert 0.4 < float(random.saliency.mean()) < 0.6
    assert abs(float(torch.corrcoef(torch.stack([random.saliency.flatten(), images.flatten()]))[0, 1])) < 0.1


def test_the_random_control_follows_the_image_and_never_the_position():
    network, images = tiny_network(bridge="random"), random_images(3)
    maps = view(network, images).saliency
    assert torch.equal(view(network, images[[2, 0]]).saliency, maps[[2, 0]])
    assert not torch.equal(maps[0], maps[1])


def test_the_shuffled_control_has_the_values_of_the_saliency_in_other_places():
    images = random_images(2)
    saliency, shuffled = (view(tiny_network(bridge=kind), images).saliency for kind in ("saliency", "shuffled"))
    for one, other in zip(saliency, shuffled, strict=True):
        assert torch.equal(one.flatten().sort().values, other.flatten().sort().values)
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.1


def test_the_shuffled_control_leaves_the_classifier_and_its_levels_alone():
    images = random_images(2)
    plain, shuffled = (view(tiny_network(bridge=kind), images) for kind in ("saliency", "shuffled"))
    assert torch.equal(plain.class_logits, shuffled.class_logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.levels, shuffled.levels, strict=True))


def test_the_order_of_the_shuffled_control_follows_the_image_and_never_the_position():
    network, images = tiny_network(bridge="shuffled"), random_images(3)
    alone = torch.cat([view(network, image[None]).saliency for image in images])
    torch.testing.assert_close(view(network, images).saliency, alone, rtol=1e-9, atol=1e-12)
    saliency = view(tiny_network(), images).saliency.flatten(1)
    orders = [[row.argsort() for row in each] for each in (saliency, alone.flatten(1))]
    where = [torch.empty_like(a).scatter_(0, b, a) for a, b in zip(*orders, strict=True)]
    assert not torch.equal(where[0], where[1])


def test_the_saliency_of_an_image_does_not_depend_on_its_batch():
    network, images = tiny_network(saliency_scale="max"), random_images(3)
    alone = torch.cat([view(network, image[None]).saliency for image in images])
    torch.testing.assert_close(view(network, images).saliency, alone, rtol=1e-9, atol=1e-12)


def test_a_network_without_classifier_shows_its_levels_only():
    seen = view(tiny_network(classification=False, bridge="off"), random_images(1))
    assert (seen.class_logits, seen.saliency, seen.bridge) == (None, None, None)
    assert len(seen.levels) == 5
