"""One file a round: weights, what happened so far, and which sites were accepted; resume continues from it.

The safetensors file carries the state as JSON in its header, with a hash over both, so weights and state can never
disagree: the file is written beside the old one and renamed.
"""

from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from multimix.config import Frozen
from multimix.contract.messages import SiteCard, Weights, sha256_text, weights_sha256
from multimix.contract.privacy import PatientPrivacy
from multimix.errors import CheckpointError
from multimix.privacy.central import SiteLevel
from server.results import RoundResult, replace_file

FILE = "checkpoint.safetensors"


class JobState(Frozen):
    """Everything but the weights that a resumed run continues from."""

    job_id: str
    config_sha256: str  # of the run configuration that must not change between the parts of a run
    round: int  # rounds finished
    cards: dict[str, SiteCard]
    mask_convention: str | None
    rounds: tuple[RoundResult, ...] = ()
    local_only: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    privacy: dict[str, PatientPrivacy] = Field(default_factory=dict)  # what a private run asks of each site
    site_level: SiteLevel | None = None
    parameters: int = 0  # of the network
    budget_spent: bool = False  # the sites' budgets ended the run before its last round
    started: str
    seconds: float = 0.0  # spent before, over all parts


def write_checkpoint(folder: Path, state: JobState, weights: Weights) -> None:
    """Replace the checkpoint; InputError `unwritable-file` leaves the old one."""
    document = state.model_dump_json()
    metadata = {"state": document, "sha256": sha256_text(document + weights_sha256(weights))}
    arrays = {name: np.asarray(value, order="C") for name, value in weights.items()}  # save() takes no other order
    replace_file(folder / FILE, save(arrays, metadata=metadata))


def read_checkpoint(folder: Path, *, config_sha256: str) -> tuple[JobState, Weights]:
    """Read the checkpoint of this very job.

    CheckpointError `checkpoint_missing`, `checkpoint_damaged` (truncated or altered) or `checkpoint_of_another_job`.
    """
    path = folder / FILE
    if not path.exists():
        raise CheckpointError(
            "checkpoint_missing",
            f"There is no checkpoint to resume in {folder}: run without resume, or name the folder of the run in out.",
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        state = JobState.model_validate_json(metadata["state"])
        intact = metadata["sha256"] == sha256_text(metadata["state"] + weights_sha256(weights))
    except (OSError, SafetensorError, KeyError, ValidationError) as error:
        raise CheckpointError("checkpoint_damaged", _damaged(path, type(error).__name__)) from error
    if not intact:
        raise CheckpointError("checkpoint_damaged", _damaged(path, "its hash differs"))
    if state.config_sha256 != config_sha256:
        raise CheckpointError(
            "checkpoint_of_another_job",
            f"{path} belongs to job {state.job_id} with another configuration: resume with the configuration in "
            f"{folder}/results.json, or choose another out for a new run.",
        )
    return state, weights


def _damaged(path: Path, why: str) -> str:
    return f"{path} is truncated or altered ({why}): it cannot be resumed; start the run again without resume."
