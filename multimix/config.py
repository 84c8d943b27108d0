"""Every choice of the method as a named field, and the presets and rows built from them.

`paper` is the intent of Haque et al., MELBA 2021 (arXiv 2110.13185), with the defects of the released code fixed.
`modern` is what scores best here and suits per-patient privacy. The paper's rows (U-Net, Enc, EncSSL, UMTL,
UMTLS, MultiMix) and the controls of the bridge are configurations of the one network and objective, not classes.
Imports no torch: the configuration travels in the round plan.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PhotometricOperation = Literal[
    "identity", "autocontrast", "equalize", "brightness", "contrast", "sharpness", "posterize", "solarize",
    "gamma", "noise", "blur", "cutout",
]  # fmt: skip
GeometricOperation = Literal["rotate", "shear_x", "shear_y", "translate_x", "translate_y", "scale"]

RANDAUGMENT_PHOTOMETRIC: tuple[PhotometricOperation, ...] = (
    "identity", "autocontrast", "equalize", "brightness", "contrast", "sharpness", "posterize", "solarize",
)  # fmt: skip
RANDAUGMENT_GEOMETRIC: tuple[GeometricOperation, ...] = (
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
RADIOGRAPH_PHOTOMETRIC: tuple[PhotometricOperation, ...] = (
    "brightness",
    "contrast",
    "gamma",
    "noise",
    "blur",
    "sharpness",
    "cutout",
    "equalize",
)

Unit = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, le=1e6)]


class Frozen(BaseModel):
    """A pydantic value: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkConfig(Frozen):
    """Shape of the network: a U-Net of five blocks with a classifier on the encoder."""

    # From 32: the deepest level is a sixteenth, and one pixel has no variance to normalise by.
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 128
    intensity: Literal["as-is", "equalised"] = "as-is"  # of what the network is shown, views too
    width: Annotated[int, Field(ge=2, le=128)] = 16  # channels of the first block, doubled four times
    norm_affine: bool = False
    standardised: bool = False  # the classifier's features, by constants from public images
    classification: bool = True
    segmentation: bool = True
    # What the decoder is shown beside the image: nothing, the saliency, or a control in its place.
    bridge: Literal["off", "saliency", "zero", "random", "shuffled"] = "saliency"
    saliency_scale: Literal["raw", "max"] = "raw"

    @model_validator(mode="after")
    def _some_task(self) -> "NetworkConfig":
        if not (self.classification or self.segmentation):
            raise ValueError("a network needs classification, segmentation or both")
        if not self.classification and self.bridge != "off":
            raise ValueError("the bridge needs the classifier: set bridge = off, or classification = true")
        return self


class ViewConfig(Frozen):
    """Weak and strong views of an image; magnitudes are fractions of the image or of the grey range."""

    flip: bool = True
    weak_translate: Unit = 0.05
    weak_rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 5.0
    weak_scale: Unit = 0.05
    strong_operations: Annotated[int, Field(ge=0, le=8)] = 2  # RandAugment's n
    strong_magnitude: Annotated[float, Field(ge=0, le=30)] = 10.0  # RandAugment's m, of 30
    photometric: tuple[PhotometricOperation, ...] = RANDAUGMENT_PHOTOMETRIC
    geometric: tuple[GeometricOperation, ...] = RANDAUGMENT_GEOMETRIC
    strong_labelled: bool = False  # labelled images too are seen as strong views


class ObjectiveConfig(Frozen):
    """Weights of the loss, per image; constants, never divided by how many images qualified."""

    semi_supervised: bool = True
    confidence_threshold: Unit = 0.7
    unlabelled_classification_weight: NonNegative = 0.25
    segmentation_weight: NonNegative = 5.0
    unlabelled_segmentation_weight: NonNegative = 0.01
    cross_entropy_weight: NonNegative = 0.0  # of the pixelwise cross-entropy beside the Dice loss
    ramp_fraction: Unit = 0.0  # of the whole run over which the unlabelled weights grow to full
    teacher: Literal["student", "incoming", "ema"] = "student"
    ema_decay: Unit = 0.99
    share_unlabelled: bool = False  # one unlabelled image teaches both tasks it has no label for
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    dropout_kind: Literal["element", "channel"] = "element"


class OptimiserConfig(Frozen):
    """Adam, begun afresh every round; the learning rate is a function of (round, step)."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: NonNegative = 0.0


class MethodConfig(Frozen):
    """The method: what is trained, on which views, with which loss, how."""

    network: NetworkConfig = NetworkConfig()
    views: ViewConfig = ViewConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()


PresetName = Literal["paper", "modern", "private"]
RowName = Literal[
    "u-net", "enc", "enc-ssl", "umtl", "umtls", "multimix", "bridge-off", "zero-saliency", "random-saliency"
]


def preset(name: PresetName, *, image_size: int = 128, width: int = 16) -> MethodConfig:
    """Return the configuration of a preset at an image size and network width.

    `private` is `modern` for clipped and noised gradients: standardised features, and larger steps since there are few.
    """
    if name == "paper":
        return MethodConfig(network=NetworkConfig(image_size=image_size, width=width))
    private = name == "private"
    return MethodConfig(
        network=NetworkConfig(
            image_size=image_size, width=width, norm_affine=True, saliency_scale="max", standardised=private
        ),
        views=ViewConfig(
            photometric=RADIOGRAPH_PHOTOMETRIC,
            geometric=(*RANDAUGMENT_GEOMETRIC, "scale"),
            strong_labelled=True,
        ),
        objective=ObjectiveConfig(
            confidence_threshold=0.8,
            unlabelled_segmentation_weight=0.5,
            cross_entropy_weight=1.0,
            ramp_fraction=0.3,
            teacher="ema",
            share_unlabelled=True,
            dropout=0.1,
            dropout_kind="channel",
        ),
        optimiser=OptimiserConfig(learning_rate=2e-2 if private else 1e-3, schedule="cosine", weight_decay=1e-4),
    )


_ROWS: dict[str, dict[str, dict[str, object]]] = {
    "u-net": {
        "network": {"classification": False, "bridge": "off"},
        "objective": {"semi_supervised": False},
    },
    "enc": {"network": {"segmentation": False, "bridge": "off"}, "objective": {"semi_supervised": False}},
    "enc-ssl": {"network": {"segmentation": False, "bridge": "off"}},
    "umtl": {"network": {"bridge": "off"}, "objective": {"semi_supervised": False}},
    "umtls": {"objective": {"semi_supervised": False}},
    "multimix": {},
    "bridge-off": {"network": {"bridge": "off"}},
    "zero-saliency": {"network": {"bridge": "zero"}},
    "random-saliency": {"network": {"bridge": "random"}},
}


def row(name: RowName, method: MethodConfig) -> MethodConfig:
    """Return the method changed into one of the paper's rows or a control of the bridge."""
    document = method.model_dump()
    for section, changes in _ROWS[name].items():
        document[section].update(changes)
    return MethodConfig.model_validate(document)
