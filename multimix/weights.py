"""Network weights as named float32 arrays: what travels, is hashed, averaged and saved."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from multimix.config import NetworkConfig
from multimix.contract.messages import Weights
from multimix.errors import InputError
from multimix.files import write_atomically
from multimix.network import MultiMixNetwork


def export(network: MultiMixNetwork) -> Weights:
    """Copy the parameters out."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def load_into(network: MultiMixNetwork, weights: Weights) -> MultiMixNetwork:
    """Set the parameters; ValueError when names or shapes differ."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != given:
        raise ValueError("weights do not fit this network")
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return network


def save_model(path: Path, weights: Weights, config: NetworkConfig, *, fit: str = "pad") -> None:
    """Write weights, the network's configuration and how images were fitted into the square to one file."""
    arrays = {name: np.asarray(value, order="C") for name, value in weights.items()}  # save() takes no other order
    write_atomically(path, save(arrays, metadata={"network": config.model_dump_json(), "fit": fit}))


def saved_fit(path: Path) -> str:
    """Return how the images were fitted that a readable model was trained on: pad or stretch."""
    with safe_open(path, framework="numpy") as file:
        return str((file.metadata() or {}).get("fit", "pad"))


def load_model(path: Path) -> MultiMixNetwork:
    """Read a model written by `save_model`; InputError `model_unreadable` for anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            config = NetworkConfig.model_validate(json.loads((file.metadata() or {})["network"]))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        return load_into(MultiMixNetwork(config), weights)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "model_unreadable",
            f"{path} is no model of this software ({type(error).__name__}): give the model.safetensors of a run folder",
        ) from error
