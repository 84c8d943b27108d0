"""The figures of one federated run: the documented schema of `results.json`, written after every round.

Everything a person or a tool reads about a run is here; `report.html` and `model_card.json` are renderings of
it. Field by field in docs/results.md. A figure that is undefined (AUROC where one class is missing, a loss
that was not finite) is `None`, never NaN, so the file is plain JSON everywhere.
"""

import math
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from multimix.errors import InputError
from multimix.files import write_atomically

RESULTS_FILE = "results.json"
PICTURES_FOLDER = "pictures"

_FILE_MODE = 0o644


def _undefined_if_not_finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inside_pictures(value: str) -> str:
    path = PurePosixPath(value)
    plain = "\\" not in value and ".." not in path.parts and path.suffix == ".png"
    if not plain or path.parts[0] != PICTURES_FOLDER or len(path.parts) < 2:  # noqa: PLR2004  (folder and name)
        raise ValueError(f"{value!r} is not a PNG under {PICTURES_FOLDER}/: give a path relative to the run folder")
    return value


Figure = Annotated[float | None, BeforeValidator(_undefined_if_not_finite)]
Metrics = dict[str, Figure]
"""Metric to value as `multimix.metrics.summarise` names them; None where the metric is undefined."""
Seconds = dict[str, Annotated[float, Field(ge=0)]]
"""Part of the work to wall-clock seconds."""
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
RunStatus = Literal["running", "finished", "stopped"]
SiteState = Literal["accepted", "refused", "rejected", "absent"]


class Record(BaseModel):
    """What every record of the file is: frozen, closed, and without NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Teachers(Record):
    """Distinct patients whose data gave one module a gradient at one site in one round."""

    labelled_patients: Count
    unlabelled_patients: Count


class SiteRound(Record):
    """One site in one round. `metrics` are validation figures of the weights the site received."""

    state: SiteState
    reason: str | None = None
    losses: Metrics = {}
    steps: Count = 0
    seconds: Seconds = {}
    update_norm: Figure = None
    teachers: dict[str, Teachers] = {}
    metrics: Metrics = {}


class RoundResult(Record):
    """One round: how long each part took, what each site did, and who taught which module."""

    round: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]
    parts: Seconds = {}
    sites: dict[str, SiteRound]
    module_shares: dict[str, dict[str, Share]] = {}
    kept_modules: tuple[str, ...] = ()


class SiteCounts(Record):
    """What a site holds, and how many of its patients could teach, within its budgets; at a held-out site none.

    Who did teach is in each round's `teachers`: a site with few patients of one class may not teach the classifier.
    """

    images: Count
    patients: Count
    normal_patients: Count = 0
    pneumonia_patients: Count = 0
    masked_patients: Count = 0
    unlabelled_patients: Count = 0


class SiteResult(Record):
    """The final model at one site. Empty `metrics` while the run is going on; `seconds` is what scoring it took there.

    `local_only` holds the same metrics of a model trained at this site alone, where that was asked for.
    """

    role: Literal["train", "held-out"]
    counts: SiteCounts
    metrics: Metrics = {}
    local_only: Metrics | None = None
    mask_conventions: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    seconds: Seconds = {}


class ConventionResult(Record):
    """The final model over all masks of one convention; not `learned` where none of them served as labels."""

    metrics: Metrics = {}
    sites: tuple[str, ...] = ()
    learned: bool = True


class Overall(Record):
    """The final model over the held-out patients of all sites."""

    metrics: Metrics = {}


class Picture(Record):
    """A sample prediction; `file` is a PNG under pictures/, relative to the run folder."""

    site: str
    caption: str
    file: Annotated[str, AfterValidator(_inside_pictures)]


class SitePrivacy(Record):
    """What a private run costs each patient of one site; `epsilon` is None while the run goes on.

    Counted are all rounds that the site was asked for and did not refuse, answered or not: the worst case.
    """

    epsilon: Figure = None  # the larger of the two accountants
    prv: Figure = None
    pld: Figure = None
    delta: float
    planned_epsilon: float
    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    declared_patients: Count
    images_per_patient: Count
    modules: tuple[str, ...]
    parameters: str
    rounds: Count
    steps: Count


class SiteLevelPrivacy(Record):
    """What a run costs each whole site; the server's noise."""

    epsilon: Figure = None
    delta: float
    planned_epsilon: float
    noise_multiplier: float
    clip_norm: float
    sites: Count
    rounds: Count
    noise_to_signal: float


class Privacy(Record):
    """The guarantees of a run: for patients by site, for whole sites, or none (epsilon = infinity)."""

    patients: dict[str, SitePrivacy] = {}
    sites: SiteLevelPrivacy | None = None
    budget_spent: bool = False  # the run ended because sites' budgets were spent
    seeded: bool = False  # a simulation with known noise: not private
    accountants: dict[str, str] = {}


class Results(Record):
    """The whole run."""

    schema_version: Literal[1] = 1
    job_id: str
    title: str
    status: RunStatus
    synthetic: bool
    privacy: Annotated[str, Field(min_length=1)]
    privacy_details: Privacy = Privacy()
    started: AwareDatetime
    finished: AwareDatetime | None = None
    rounds_planned: Count
    rounds: tuple[RoundResult, ...] = ()
    sites: dict[str, SiteResult] = {}
    conventions: dict[str, ConventionResult] = {}
    overall: Overall = Overall()
    timing: Seconds = {}
    pictures: tuple[Picture, ...] = ()
    config: dict[str, bool | int | float | str]
    software: dict[str, str]


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, or a crash, sees the old file or the new one, never a part.

    Raises:
        InputError: `unwritable-file`; what was there before is untouched and no temporary file is left.
    """
    try:
        write_atomically(path, content, mode=_FILE_MODE)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the error that tells a person why a file could not be written."""
    return InputError(
        "unwritable-file",
        f"Cannot write {path}: {error.strerror}. Free space or choose another folder with --out; the previous file, "
        "if any, is intact.",
    )


def write_results(results: Results, folder: Path) -> Path:
    """Write `results.json` into the run folder atomically and return its path; raises as `replace_file`."""
    path = folder / RESULTS_FILE
    replace_file(path, results.model_dump_json(indent=1).encode())
    return path


def read_results(folder: Path) -> Results:
    """Read and check `results.json` of a run folder.

    Raises:
        InputError: `unreadable-results` where the file is missing, truncated or of another schema.
    """
    path = folder / RESULTS_FILE
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            "unreadable-results", f"Cannot read {path}: {error.strerror}. Name the folder of a run."
        ) from error
    except ValidationError as error:
        raise InputError("unreadable-results", _first_problem(path, error)) from error


def _first_problem(path: Path, error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"])) or "the whole file"
    return (
        f"{path} is not a results file of schema version 1: at {place}: {problem['msg']} "
        f"({error.error_count()} problems). Read it with the version of multimix that wrote it."
    )
