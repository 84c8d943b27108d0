"""What is kept of a finished case: its model, its scores, and a record of what they came from."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import AwareDatetime, Field, ValidationError

from multimix.acceleration import EXACT, Acceleration
from multimix.config import Frozen
from multimix.files import write_atomically
from sim.experiments.case import AnyCase, Case, case_sha256
from sim.experiments.convergence import Convergence
from sim.experiments.scaling import Scaling

RECORD, SCORES, MODEL = "run.json", "scores.npz", "model.safetensors"
_PACKAGES: Final = ("torch", "numpy", "flwr", "opacus")


class CaseRecord(Frozen):
    """The manifest of a finished case; written last, so a case without one is not finished."""

    schema_version: int = 1
    case: Case
    case_sha256: str
    data_sha256: str  # over the contents of the decoded images, masks, labels, patients and splits
    code: str
    software: dict[str, str]
    device: str
    acceleration: Acceleration = EXACT  # of a central case's training
    finished: AwareDatetime
    train_s: float
    score_s: float
    parameters: int
    losses: dict[str, float] = Field(default_factory=dict)
    pseudo_label_rate: float | None = None  # of the unlabelled views, how many were confident
    scaling: Scaling | None = None
    convergence: dict[str, Convergence] = Field(default_factory=dict)  # of a federation, by validation figure
    epsilon_spent: dict[str, float] = Field(default_factory=dict)  # of a private one, by site


def software() -> dict[str, str]:
    """Return the versions that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def finished(folder: Path, case: AnyCase, data_sha256: str) -> CaseRecord | None:
    """Return the record in a folder if it is of this very case on this data; None where there is work to do."""
    record = read_record(folder)
    if record is None or not (record.scaling or (folder / SCORES).exists()) or not fits(record, case, data_sha256):
        return None
    return record


def fits(record: CaseRecord, case: AnyCase, data_sha256: str) -> bool:
    """Whether a record is of this very case on this data."""
    return record.case_sha256 == case_sha256(case) and record.data_sha256 == data_sha256


def read_record(folder: Path) -> CaseRecord | None:
    """Return the record of a finished case; None where there is none that can be read."""
    try:
        return CaseRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def write_record(folder: Path, record: CaseRecord) -> None:
    """Mark a case as finished."""
    write_atomically(folder / RECORD, (record.model_dump_json(indent=1) + "\n").encode())
