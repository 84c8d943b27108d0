"""Faster ways to compute the same step: what they change and what they leave alone."""

import shutil

import pytest
import torch
from support import random_images, tiny_config

from multimix.acceleration import EXACT, Acceleration
from multimix.network import Block, MultiMixNetwork, copy_of, new_network
from multimix.saliency import view
from multimix.weights import export, load_model, save_model

IMAGES = random_images(3).float()
CHOICES = [Acceleration(precision="bfloat16"), Acceleration(channels_last=True)]
every_choice = pytest.mark.parametrize("acceleration", CHOICES, ids=str)


def network(acceleration=EXACT) -> MultiMixNetwork:
    made = new_network(tiny_config(width=4), 0)
    made.accelerate(acceleration)
    return made


def answers(made, images=IMAGES):
    seen = view(made, images)
    with torch.no_grad():
        return torch.cat([seen.class_logits.flatten(), made.decode(seen.levels, seen.bridge).flatten()])


def test_a_network_computes_exactly_unless_told_otherwise():
    assert torch.equal(answers(network()), answers(new_network(tiny_config(width=4), 0)))
    assert new_network(tiny_config(), 0).acceleration == EXACT


@every_choice
def test_the_answers_are_nearly_the_same(acceleration):
    exact, found = answers(network()), answers(network(acceleration))
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < (0.15 if acceleration.precision == "bfloat16" else 1e-4)


def test_bfloat16_is_what_convolutions_compute_in_and_not_what_weights_are():
    made = network(Acceleration(precision="bfloat16"))
    assert {level.dtype for level in made.encode(IMAGES)} == {torch.bfloat16}
    assert {each.dtype for each in made.parameters()} == {torch.float32}


def test_channels_last_is_the_layout_of_what_is_computed():
    made = network(Acceleration(channels_last=True))
    assert made.encoder.blocks[1].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@every_choice
def test_a_copy_computes_as_its_original(acceleration):
    made = network(acceleration)
    assert torch.equal(answers(copy_of(made)), answers(made))


@every_choice
def test_a_saved_model_is_the_exact_one_of_the_same_weights(acceleration, tmp_path):
    made = network(acceleration)
    save_model(tmp_path / "model.safetensors", export(made), made.config, fit="stretch")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.acceleration == EXACT
    assert torch.equal(answers(loaded), answers(network()))


@every_choice
def test_gradients_reach_every_parameter(acceleration):
    made = network(acceleration)
    levels = made.encode(IMAGES)
    bridge = view(made, IMAGES).bridge
    (made.classify(levels).sum() + made.decode(levels, bridge).sum()).backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in made.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_a_compiled_block_answers_nearly_the_same_and_its_copy_too():
    exact, made = network(), network()
    made.acceleration = Acceleration(compiled=True)
    made.acceleration.prepare(made, iter([made.encoder.blocks[0]]))  # all of them take minutes
    assert (answers(made) - answers(exact)).norm() / answers(exact).norm() < 1e-4


def test_what_is_compiled_are_all_blocks_of_the_network_and_of_its_copy(monkeypatch):
    compiled = []

    def note(block):
        compiled.append(block)

    monkeypatch.setattr(Block, "compile", note)
    made = network(Acceleration(compiled=True))
    assert compiled == [*made.encoder.blocks, *made.decoder.blocks]
    copied = copy_of(made)
    assert compiled[9:] == [*copied.encoder.blocks, *copied.decoder.blocks]


def test_what_is_not_exact_is_told_with_the_device():
    assert EXACT.in_words == ""
    assert Acceleration(precision="bfloat16", channels_last=True).in_words == ", bfloat16, channels_last"
