import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support import random_images, tiny_config, tiny_network

from multimix.config import NetworkConfig
from multimix.errors import InputError
from multimix.network import new_network
from multimix.weights import export, load_into, load_model, save_model, saved_fit


def test_exported_weights_make_the_same_network_again():
    one, other = new_network(tiny_config(), 1), new_network(tiny_config(), 2)
    load_into(other, export(one))
    images = random_images(1).float()
    assert torch.equal(one.classify(one.encode(images)), other.classify(other.encode(images)))
    assert all(value.dtype == np.float32 for value in export(other).values())


def test_exported_weights_are_copies_in_both_directions():
    network = new_network(tiny_config(), 1)
    weights = export(network)
    before = {name: value.copy() for name, value in weights.items()}
    other = load_into(new_network(tiny_config(), 2), weights)
    with torch.no_grad():
        for parameter in [*network.parameters(), *other.parameters()]:
            parameter.add_(1.0)
    assert all(np.array_equal(weights[name], before[name]) for name in weights)


def test_read_only_weights_can_be_loaded():
    weights = export(new_network(tiny_config(), 1))
    for value in weights.values():
        value.setflags(write=False)
    network = load_into(new_network(tiny_config(), 2), weights)
    with torch.no_grad():
        next(network.parameters()).add_(1.0)


def with_missing(weights):
    return dict(list(weights.items())[1:])


def with_foreign(weights):
    return {**weights, "audit": np.zeros(3, np.float32)}


def with_wrong_shape(weights):
    return {**weights, "classifier.linear.bias": np.zeros(3, np.float32)}


def with_shape_to_broadcast(weights):
    return {**weights, "classifier.linear.bias": np.zeros((), np.float32)}


@pytest.mark.parametrize("spoil", [with_missing, with_foreign, with_wrong_shape, with_shape_to_broadcast])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(spoil):
    network = new_network(tiny_config(), 1)
    before = export(network)
    with pytest.raises(ValueError, match="do not fit"):
        load_into(network, spoil(export(new_network(tiny_config(), 2))))
    assert all(np.array_equal(value, before[name]) for name, value in export(network).items())


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(bridge="off", norm_affine=True),
        tiny_config(segmentation=False, bridge="off"),
        tiny_config(image_size=48, width=4, saliency_scale="max"),
    ],
)
def test_a_saved_model_comes_back_with_its_configuration(tmp_path, config):
    path = tmp_path / "run" / "model.safetensors"
    weights = export(new_network(config, 1))
    save_model(path, weights, config)
    loaded = load_model(path)
    assert loaded.config == config
    assert {k: v.tobytes() for k, v in export(loaded).items()} == {k: v.tobytes() for k, v in weights.items()}


def test_the_same_model_is_the_same_bytes(tmp_path):
    weights = export(tiny_network())
    for name in "abcdef":
        save_model(tmp_path / name, weights, tiny_config(), fit="stretch")
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def garbage(path):
    path.write_bytes(b"\x00garbage" * 100)


def empty(path):
    path.write_bytes(b"")


def missing(path):
    pass


def folder(path):
    path.mkdir()


def truncated(path):
    save_model(path, export(tiny_network()), tiny_config())
    path.write_bytes(path.read_bytes()[:-10])


def foreign_metadata(metadata):
    def write(path):
        save_file(export(new_network(tiny_config(), 1)), path, metadata=metadata)

    return write


def other_shapes(path):
    save_model(path, export(new_network(tiny_config(width=4), 1)), tiny_config())


def half_precision(path):
    """A file of bfloat16 tensors, which numpy does not know."""
    from safetensors.torch import save_file as save_torch

    tensors = {name: p.detach().bfloat16() for name, p in new_network(tiny_config(), 1).named_parameters()}
    save_torch(tensors, path, metadata={"multimix": f'{{"network": {tiny_config().model_dump_json()}}}'})


@pytest.mark.parametrize(
    "write",
    [
        garbage,
        empty,
        missing,
        folder,
        truncated,
        foreign_metadata(None),
        foreign_metadata({"multimix": "no json"}),
        foreign_metadata({"multimix": "[1]"}),
        foreign_metadata({"multimix": '{"network": {"width": 1000}}'}),
        other_shapes,
        half_precision,
    ],
)
def test_what_is_no_model_is_refused_with_its_name(tmp_path, write):
    path = tmp_path / "model.safetensors"
    write(path)
    with pytest.raises(InputError) as refused:
        load_model(path)
    assert refused.value.reason == "model_unreadable"
    assert str(path) in str(refused.value)


def test_the_published_size_of_the_model_file_is_that_of_its_weights(tmp_path):
    config = NetworkConfig(image_size=256, width=16)
    save_model(tmp_path / "m", export(new_network(config, 0)), config)
    megabytes = (tmp_path / "m").stat().st_size / 1e6
    assert megabytes == pytest.approx(4 * (1_965_173 - 1_472 - 18) / 1e6, rel=0.001)  # 7.86 MB less the dead ones


def test_a_model_file_remembers_how_its_images_were_fitted(tmp_path):
    save_model(tmp_path / "m.safetensors", export(tiny_network()), tiny_config(), fit="stretch")
    assert saved_fit(tmp_path / "m.safetensors") == "stretch"
