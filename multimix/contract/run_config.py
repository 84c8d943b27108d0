"""The run configuration: flat keys, as `flwr run . -c "key=value"` and `multimix-sim run -c key=value` take them.

Flower's run configuration holds scalars only, so lists are comma-separated text and "" means unset. The defaults
here and in `[tool.flwr.app.config]` are the same; a test compares them.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from multimix.config import Frozen, MethodConfig, NonNegative, PresetName, RowName, Unit, preset, row
from multimix.contract.messages import OneClassSites
from multimix.errors import RunConfigError

Scalar = str | int | float | bool
Weighting = Literal["per-module", "plain"]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Epsilon = Annotated[float, Field(gt=0, le=100)]
Delta = Annotated[float, Field(ge=0, lt=1)]
# Of a model of phantoms that a private run is to begin with.
PRETRAINING_DEFAULTS: dict[str, Scalar] = {"preset": "private", "learning-rate": 1e-3, "phantom-patients": 300}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class RunConfig(Frozen):
    """One job, from the data to the number of rounds."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_dashed,
        populate_by_name=True,
        coerce_numbers_to_str=True,  # `flwr run -c "labels=200"` gives a number
    )

    # The job
    title: str = "Federated MultiMix"
    out: str = ""  # run folder; "" makes a new one under runs/
    resume: bool = False
    seed: Annotated[int, Field(ge=0, le=2**53)] = 0
    split_seed: Annotated[int, Field(ge=-1, le=2**53)] = -1  # of who trains and who tests; -1 is the seed
    # The method
    preset: PresetName = "modern"
    row: RowName = "multimix"
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 64
    width: Annotated[int, Field(ge=2, le=128)] = 16
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 0.0  # 0 keeps the preset's
    # The federation
    strategy: Literal["fedavg", "fedprox"] = "fedavg"
    proximal_mu: NonNegative = 0.01  # used by fedprox
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 3
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    images_per_group: Annotated[int, Field(ge=1, le=4096)] = 4
    weighting: Weighting = "per-module"  # what a site counts in the average; plain: its patients, for all modules alike
    unlabelled_weight: Unit = 0.1  # per-module: of a patient without label, beside one with, in a module's average
    one_class_sites: OneClassSites = "exclude"
    mask_convention: str = "auto"  # auto, all, or the name of one
    quorum: Annotated[int, Field(ge=0, le=100_000)] = 0  # accepted sites a round needs; 0 = more than half
    deadline_s: Annotated[float, Field(gt=0, le=1_000_000)] = 3600.0
    maximum_update_norm: Annotated[float, Field(gt=0, le=1e6)] = 100.0
    compare_local: bool = False  # train each site alone as well, for as many steps
    pictures: Annotated[int, Field(ge=0, le=64)] = 4  # sample predictions a site may show, where its policy lets it
    device: Literal["auto", "cpu", "cuda"] = "auto"
    start_from: str = ""  # a model.safetensors whose weights the run begins with; "" draws new ones
    # Privacy: patient is trained for at the sites, site is noised at the server
    dp: Literal["none", "patient", "site", "both"] = "none"
    dp_epsilon: Epsilon = 8.0  # what the whole run may cost each patient
    dp_delta: Delta = 0.0  # 0: declared patients ** -1.1
    dp_clip_norm: Positive = 1.0
    dp_noise_multiplier: NonNegative = 0.0  # 0: the least that keeps all rounds within dp-epsilon
    dp_sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    dp_images_per_patient: Annotated[int, Field(ge=1, le=1000)] = 2
    dp_modules: str = "encoder,classifier,decoder"  # those that learn, where a site can teach them
    dp_parameters: Literal["all", "affine"] = "all"  # affine: normalisation and output layers only
    dp_site_epsilon: Epsilon = 8.0
    dp_site_delta: Delta = 0.0  # 0: 1 / (10 sites)
    dp_site_clip_norm: Positive = 1.0
    dp_accept: bool = False  # run although the site-level claim is hollow
    heads: str = ""  # file of the ledger heads this server has countersigned; "" is heads.jsonl in the run folder
    dp_budget: Annotated[float, Field(ge=0, le=100)] = (
        0.0  # simulation: each site's budget, for a run and for life; 0 is dp-epsilon
    )
    dp_seeded: bool = False  # simulation: noise from the seed, repeatable and NOT private
    # The data of a simulation
    data: str = ""  # a folder with manifest.csv, or of site folders; "" draws synthetic phantoms
    site_column: str = "source"
    hold_out: str = ""  # hospitals never trained on, comma-separated
    labels: str = ""  # label budget: "200" at most for each site, "200,jsrt=40" with exact exceptions, "" all
    masks: str = ""
    fit: Literal["pad", "stretch"] = "pad"
    pooled: bool = False  # one site that has all that the training hospitals have, to compare a federation with
    dirichlet_sites: Annotated[int, Field(ge=0, le=100_000)] = 0
    dirichlet_alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    phantom_hospitals: Annotated[int, Field(ge=0, le=1000)] = 0  # 0: one for each node
    phantom_patients: Annotated[int, Field(ge=4, le=1_000_000)] = 60
    cache: str = ".multimix"

    def method(self) -> MethodConfig:
        """Return the method this run trains."""
        method = row(self.row, preset(self.preset, image_size=self.image_size, width=self.width))
        if not self.learning_rate:
            return method
        optimiser = method.optimiser.model_copy(update={"learning_rate": self.learning_rate})
        return method.model_copy(update={"optimiser": optimiser})

    def flat(self) -> dict[str, Scalar]:
        """Return the configuration as Flower's run configuration."""
        return self.model_dump(by_alias=True)

    @property
    def patient_level(self) -> bool:
        """Whether sites train with differential privacy for their patients."""
        return self.dp in ("patient", "both")

    @property
    def site_level(self) -> bool:
        """Whether the server noises the average, for whole sites."""
        return self.dp in ("site", "both")

    def held_out(self) -> tuple[str, ...]:
        """Return the names of the hospitals held out."""
        return tuple(name.strip() for name in self.hold_out.split(",") if name.strip())


def read_run_config(values: dict[str, Scalar]) -> RunConfig:
    """Check a flat run configuration; RunConfigError naming key, value and bound."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(dict(item)) for item in error.errors())
        raise RunConfigError("run_config", f"The run configuration cannot be used: {problems}.") from None


def _problem(item: dict[str, object]) -> str:
    location = item["loc"]
    key = ".".join(str(part) for part in location) if isinstance(location, tuple) else "?"
    if item["type"] == "extra_forbidden":
        known = sorted(_dashed(name) for name in RunConfig.model_fields)
        return f"there is no key {key!r} (known: {', '.join(known)})"
    return f"{key} = {item.get('input')!r}: {item['msg']}"
