"""Network weights as named float32 arrays: what travels, is hashed, averaged and saved."""

from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from multimix.config import Frozen, NetworkConfig
from multimix.contract.messages import Weights
from multimix.errors import InputError
from multimix.files import write_atomically
from multimix.network import MultiMixNetwork

_REMARKS: Final = "multimix"  # one key: safetensors writes several in no fixed order, and the file's hash would change


class _Remarks(Frozen):
    """What a model file says beside its weights."""

    network: NetworkConfig
    fit: Literal["pad", "stretch"] = "pad"


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


def save_model(path: Path, weights: Weights, config: NetworkConfig, *, fit: Literal["pad", "stretch"] = "pad") -> None:
    """Write weights, the network's configuration and how images were fitted into the square to one file.

    The same model is the same bytes.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in weights.items()}  # save() takes no other order
    remarks = _Remarks(network=config, fit=fit)
    write_atomically(path, save(arrays, metadata={_REMARKS: remarks.model_dump_json()}))


def _remarks(metadata: dict[str, str] | None) -> _Remarks:
    return _Remarks.model_validate_json((metadata or {})[_REMARKS])


def saved_fit(path: Path) -> str:
    """Return how the images were fitted that a readable model was trained on: pad or stretch."""
    with safe_open(path, framework="numpy") as file:
        return _remarks(file.metadata()).fit


def load_model(path: Path) -> MultiMixNetwork:
    """Read a model written by `save_model`; InputError `model_unreadable` for anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            config = _remarks(file.metadata()).network
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        return load_into(MultiMixNetwork(config), weights)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "model_unreadable",
            f"{path} is no model of this software ({type(error).__name__}): give the model.safetensors of a run folder",
        ) from error
