import pytest
import torch
from support import random_images, tiny_config, tiny_network

from multimix.config import NetworkConfig
from multimix.contract.messages import MODULES, module_of
from multimix.network import Dropout, new_network
from multimix.saliency import view

CHANNELS = [16, 32, 64, 128, 256]
DECODER_INPUTS = [256 + 128 + 2, 128 + 64, 64 + 32, 32 + 16]  # upsampled, skip and, in the first stage, the bridge


UNUSED = 17 + 1  # `conv_last_saliency` of the released decoder, a 1x1 convolution that no pass ever runs


def released_parameters() -> int:
    """Parameters of the released network, whose convolutions carry biases (Haque et al. 2021)."""
    encoder = zip([1, *CHANNELS[:-1]], CHANNELS, strict=True)
    decoder = zip(DECODER_INPUTS, CHANNELS[-2::-1], strict=True)
    blocks = sum(9 * (a * b + b * b) + 2 * b for a, b in [*encoder, *decoder])
    return blocks + (256 * 2 + 2) + (16 + 1) + UNUSED


def test_the_paper_network_has_the_published_parameters_less_the_dead_ones():
    assert released_parameters() == 1_965_173
    dead_biases = 2 * (sum(CHANNELS) + sum(CHANNELS[:-1]))
    assert dead_biases == 1_472
    network = new_network(NetworkConfig(image_size=256, width=16), 0)
    assert sum(p.numel() for p in network.parameters()) == 1_965_173 - 1_472 - UNUSED


@pytest.mark.parametrize(("bridge", "channels"), [("saliency", 386), ("zero", 386), ("random", 386), ("off", 384)])
def test_the_first_decoder_stage_takes_two_channels_more_with_a_bridge(bridge, channels):
    network = new_network(NetworkConfig(image_size=32, width=16, bridge=bridge), 0)
    assert network.decoder.blocks[0].conv1.in_channels == channels
    assert [block.conv1.in_channels for block in network.decoder.blocks][1:] == DECODER_INPUTS[1:]


@pytest.mark.parametrize("affine", [False, True])
def test_every_parameter_belongs_to_a_module_and_every_module_has_parameters(affine):
    names = [name for name, _ in tiny_network(norm_affine=affine).named_parameters()]
    assert {module_of(name) for name in names} == set(MODULES)
    assert names == list(tiny_network(norm_affine=affine).state_dict())  # no buffers: nothing else to send


@pytest.mark.parametrize(
    ("changes", "modules"),
    [
        ({"classification": False, "bridge": "off"}, {"encoder", "decoder"}),
        ({"segmentation": False, "bridge": "off"}, {"encoder", "classifier"}),
    ],
)
def test_a_task_left_out_has_no_parameters_and_says_so_when_asked(changes, modules):
    network = tiny_network(**changes)
    assert {module_of(name) for name, _ in network.named_parameters()} == modules
    levels = network.encode(random_images(1))
    with pytest.raises(ValueError, match=r"no (classifier|decoder)"):
        network.classify(levels) if "classifier" not in modules else network.decode(levels, None)


def test_shapes_are_those_of_the_docstrings():
    network = tiny_network(image_size=48)
    images = random_images(3, size=48)
    levels = network.encode(images)
    assert [tuple(level.shape) for level in levels] == [(3, 2 * 2**i, 48 // 2**i, 48 // 2**i) for i in range(5)]
    assert network.classify(levels).shape == (3, 2)
    assert network.decode(levels, torch.zeros(3, 2, 6, 6).double()).shape == (3, 1, 48, 48)


def outputs(network, images, dropout=None):
    levels = network.encode(images, dropout)
    return network.classify(levels), network.decode(levels, view(network, images).bridge, dropout)


def test_passes_without_dropout_are_deterministic_whatever_the_mode_and_the_random_state():
    network, images = tiny_network(), random_images(2)
    first = outputs(network.train(), images)
    torch.rand(7)
    second = outputs(network.eval(), images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_image_moves_another_image_s_outputs_or_gradients():
    network = tiny_network(norm_affine=True)
    images = random_images(3)
    perturbed = images.clone()
    perturbed[1] = random_images(1, seed=9)[0] * 100

    def of_image(batch, image):
        logits, mask = outputs(network, batch, Dropout((1, 2, 3), 0.25, "element"))
        loss = logits[image].square().sum() + mask[image].square().sum()
        return logits[image], mask[image], *torch.autograd.grad(loss, list(network.parameters()))

    for image in (0, 2):
        for before, after in zip(of_image(images, image), of_image(perturbed, image), strict=True):
            torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(of_image(images, 1)[1], of_image(perturbed, 1)[1])


def test_the_seed_alone_decides_the_first_weights():
    def weights(seed):
        return torch.cat([p.detach().flatten() for p in new_network(tiny_config(), seed).parameters()])

    first = weights(1)
    torch.rand(13)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_making_a_network_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    new_network(tiny_config(), 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["element", "channel"])
def test_dropout_follows_the_seed_and_never_the_position(kind):
    features = torch.rand(3, 8, 4, 4).double()
    here = Dropout((5, 6, 7), 0.5, kind)(features, 2)
    order = [2, 0, 1]
    there = Dropout((7, 5, 6), 0.5, kind)(features[order], 2)
    assert torch.equal(here[order], there)
    assert torch.equal(Dropout((5, 6, 7), 0.5, kind).at([2, 0])(features[[2, 0]], 2), here[[2, 0]])


@pytest.mark.parametrize("kind", ["element", "channel"])
def test_dropout_differs_by_seed_and_by_layer(kind):
    ones = torch.ones(2, 64, 4, 4)
    first = Dropout((1, 2), 0.5, kind)(ones, 0)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, Dropout((1, 2), 0.5, kind)(ones, 1))


@pytest.mark.parametrize(("kind", "draws"), [("element", 512 * 64), ("channel", 512)])
def test_dropout_keeps_the_mean(kind, draws):
    dropped = Dropout((3,), 0.25, kind)(torch.ones(1, 512, 8, 8), 0)
    # Mean of `draws` Bernoulli(0.75) / 0.75: standard deviation sqrt(0.25 / 0.75 / draws).
    assert float(dropped.mean()) == pytest.approx(1.0, abs=5 * (1 / 3 / draws) ** 0.5)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])


def test_channel_dropout_drops_whole_channels_and_element_dropout_does_not():
    def channels_in_between(kind):
        kept = (Dropout((3,), 0.5, kind)(torch.ones(1, 32, 8, 8), 0) > 0).double().mean(dim=(2, 3))
        return int(((kept > 0) & (kept < 1)).sum())

    assert channels_in_between("channel") == 0
    assert channels_in_between("element") == 32


def test_dropout_of_probability_zero_is_the_identity():
    features = torch.rand(1, 2, 4, 4)
    assert torch.equal(Dropout((1,), 0.0, "element")(features, 0), features)


def test_every_layer_of_the_network_drops_and_none_shares_its_masks():
    class Recorder(Dropout):
        def __init__(self):
            self.layers = []

        def __call__(self, features, layer):
            self.layers.append(layer)
            return features

    network, recorder = tiny_network(), Recorder()
    outputs(network, random_images(1), recorder)
    assert recorder.layers == list(range(9))  # five encoder blocks, four decoder stages
