"""The messages between server and site: what is asked, and all that a site may answer.

Documents are canonical JSON of frozen pydantic models; weights travel beside them as named float32 arrays and are
bound by hash. Anything unknown is refused, never ignored.
"""

import hashlib
import json
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from multimix.config import Frozen, MethodConfig, NonNegative, Unit
from multimix.contract.privacy import Extension, PatientPrivacy, Sha256
from multimix.contract.statistics import EvaluationStatistics

PROTOCOL: Final = 1
MEAN_MASK_SIDE = 32
MINIMUM_CLASS_PATIENTS: Final = 10  # of either class: fewer teach the source, not the disease

MODULES = ("encoder", "classifier", "decoder")  # the units of aggregation: first part of a parameter's name

Weights = dict[str, np.ndarray]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Loss = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
LossTerm = Literal["classification", "unlabelled_classification", "segmentation", "unlabelled_segmentation", "total"]
SitePart = Literal["evaluation", "evaluation_model", "data", "step", "total"]
Short = Annotated[str, Field(max_length=100, pattern=r"^[ -~]*$")]  # printable ASCII
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
_MOST_ENTRIES = 16
MeanMask = Annotated[
    tuple[Annotated[int, Field(ge=0, le=255)], ...],
    Field(min_length=MEAN_MASK_SIDE**2, max_length=MEAN_MASK_SIDE**2),
]
OneClassSites = Literal["exclude", "logit_adjusted", "plain"]


class ClassCounts(Frozen):
    """Patients with a usable label, by class."""

    normal: Count = 0
    pneumonia: Count = 0


class SiteCard(Frozen):
    """What a site says about itself before the first round; bounded by its policy."""

    protocol: int = PROTOCOL
    site: Name
    role: Literal["train", "held-out"]
    synthetic: bool
    device: Short
    image_size: Count
    images: Count
    patients: Count
    training_patients: Count
    labelled_patients: ClassCounts  # within the label budget, in the training split
    masked_patients: dict[Name, Count]  # the same for masks, by convention
    conventions: tuple[Name, ...]  # of all masks there are, test patients' too
    # Mean lung mask of those masks by convention, 32 x 32 in steps of 1/255, row by row; only above the minimum cohort.
    mean_masks: dict[Name, MeanMask] = Field(default_factory=dict)
    # Patients by view, number of images, longest side and brightness, in coarse cells; those withheld are named only.
    histograms: dict[Name, dict[Name, Count]] = Field(default_factory=dict)
    withheld: tuple[Name, ...] = ()
    # Share of the lifetime's epsilon that is left, rounded down, where the hospital lets it be known.
    budget_left: Annotated[float, Field(ge=0, le=1)] | None = None
    data_fingerprint: Short
    software: dict[Name, Short]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        """Refuse counts that cannot be: parts are at most their whole."""
        parts = [self.labelled_patients.normal, self.labelled_patients.pneumonia, *self.masked_patients.values()]
        if not max(parts) <= self.training_patients <= self.patients <= self.images:
            raise ValueError("labelled and masked patients <= training patients <= patients <= images must hold")
        if not set(self.mean_masks) <= set(self.masked_patients) <= set(self.conventions):
            raise ValueError("masks of a convention that the site does not have")
        sizes = [len(self.conventions), len(self.software), len(self.histograms), *map(len, self.histograms.values())]
        if max(sizes) > _MOST_ENTRIES or len(self.withheld) > _MOST_ENTRIES**2:
            raise ValueError(f"at most {_MOST_ENTRIES} conventions, packages, histograms or cells")
        return self


class LocalWork(Frozen):
    """What one round of training at a site consists of."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)]
    images_per_group: Annotated[int, Field(ge=1, le=4096)]
    proximal_mu: NonNegative = 0.0
    first_step: Count = 0  # of the whole run; schedules and random streams are functions of it
    total_steps: Annotated[int, Field(ge=1)] = 1


class RoundPlan(Frozen):
    """One order of the coordinator, signed, bound to job, round, configuration and weights."""

    protocol: int = PROTOCOL
    job_id: Name
    round: Annotated[int, Field(ge=0, le=1_000_000)]
    kind: Literal["train", "evaluate"]
    seed: Annotated[int, Field(ge=0, le=2**53)]
    method: MethodConfig
    work: LocalWork | None = None
    mask_convention: str | None = None  # masks of other conventions are not used as labels; None accepts all
    one_class_sites: OneClassSites = "exclude"
    minimum_class_patients: Count = MINIMUM_CLASS_PATIENTS
    evaluate_on: Literal["none", "validation", "test"] = "none"
    pictures: Annotated[int, Field(ge=0, le=64)] = 0
    mean_mask: MeanMask | None = None  # of all training sites, for the baseline row
    weights_sha256: Sha256
    dp: PatientPrivacy | None = None  # a plan without it is not private


class Teachers(Frozen):
    """How many distinct patients gave a module gradient: by label or mask, and by consistency only."""

    labelled: Count = 0
    unlabelled: Count = 0


class EvaluateReport(Frozen):
    """A site's sufficient statistics of the weights it received."""

    site: Name
    job_id: Name
    round: int
    plan_sha256: Sha256
    split: Literal["validation", "test"]
    statistics: EvaluationStatistics
    seconds: dict[SitePart, Seconds] = Field(default_factory=dict)
    ledger: Extension | None = None


class TrainReport(Frozen):
    """What goes back beside the trained weights. After private training teachers, losses and seconds are empty."""

    site: Name
    job_id: Name
    round: int
    plan_sha256: Sha256
    weights_sha256: Sha256  # of the weights sent back
    steps: Count
    teachers: dict[str, Teachers]
    losses: dict[LossTerm, Loss]
    pseudo_label_rate: Unit | None = None  # share of unlabelled views confident enough to teach the classifier
    seconds: dict[SitePart, Seconds] = Field(default_factory=dict)
    evaluation: EvaluateReport | None = None
    ledger: Extension | None = None


class Picture(Frozen):
    """One PNG that the site's policy lets out (simulations and public data only)."""

    caption: str
    png: bytes


def module_of(parameter: str) -> str:
    """Return which of `MODULES` a parameter belongs to; ValueError for a foreign name."""
    module = parameter.split(".", 1)[0]
    if module not in MODULES:
        raise ValueError(f"parameter {parameter!r} belongs to none of {MODULES}")
    return module


def taught_arrays(weights: Weights, teachers: dict[str, Teachers]) -> Weights:
    """Return the arrays of the modules that somebody taught: what a site sends, and what the server expects."""
    taught = {module for module, counts in teachers.items() if counts.labelled + counts.unlabelled}
    return {name: value for name, value in weights.items() if module_of(name) in taught}


def private_arrays(weights: Weights, dp: PatientPrivacy) -> Weights:
    """Return the arrays that are trained, noised and sent under a private plan.

    `affine` leaves the convolutions as they are: normalisation, the classifier's linear layer and the last layer of
    the decoder learn, a few thousand numbers, so that the noise on all of them together stays small.
    """

    def learns(name: str) -> bool:
        if ".standard_" in name:
            return False
        return dp.parameters == "all" or any(part in name for part in (".norm", "classifier.", "decoder.output."))

    return {name: value for name, value in weights.items() if module_of(name) in dp.modules and learns(name)}


def canonical_json(document: Frozen) -> str:
    """Return the one text of a document that is signed and hashed."""
    return json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(weights: Weights) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of the weights, in name order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.asarray(weights[name])
        # A JSON list shows its own end, so no choice of names can imitate other arrays.
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
