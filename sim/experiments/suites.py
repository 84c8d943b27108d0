"""Which cases make an experiment, at a scale."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from multimix.config import MethodConfig, RowName, preset, row
from multimix.errors import RunConfigError
from sim.experiments.case import AnyCase, BaselineCase, CentralCase, Row, baselines_of, case_name, needs
from sim.experiments.federations import hospitals_table, many_sites
from sim.experiments.scales import SCALES, Cell, Scale, ScaleName

ExperimentName = Literal["paper", "ablation", "federated", "scale"]

# The rows of the paper, as configurations of its preset.
PAPER_ROWS: Final[dict[Row, RowName]] = {
    "u-net": "u-net",
    "enc": "enc",
    "enc-ssl": "enc-ssl",
    "umtl": "umtl",
    "umtls": "umtls",
    "paper": "multimix",
}
# `modern`, what it is without its unlabelled images, and the controls of its bridge.
MODERN_ROWS: Final[dict[Row, RowName]] = {
    "modern": "multimix",
    "modern-supervised": "umtls",
    "modern-bridge-off": "bridge-off",
    "modern-zero-saliency": "zero-saliency",
    "modern-random-saliency": "random-saliency",
}
REPEATED: Final = ("modern", "modern-supervised", "umtl")  # with several seeds also where time is short


def cases(name: ExperimentName, scale: ScaleName) -> list[AnyCase]:
    """Return the cases of an experiment, the most telling first; a row that stands in several cells once."""
    made: dict[ExperimentName, Callable[[Scale], Iterable[AnyCase]]] = {
        "paper": _paper,
        "ablation": _ablation,
        "federated": hospitals_table,
        "scale": many_sites,
    }
    return list({case_name(case): case for case in made[name](SCALES[scale])}.values())


def _paper(scale: Scale) -> Iterator[AnyCase]:
    reference = _methods(scale)["paper"]
    for labels, masks in scale.cells:
        yield from baselines_of(_central("paper", reference, scale, (labels, masks), scale.seeds[0]))
    for seed in (*scale.seeds, *scale.more_seeds):
        for labels, masks in scale.cells:
            for name, method in _methods(scale).items():
                if seed in scale.seeds or name in REPEATED:
                    yield _central(name, method, scale, (labels, masks), seed)


def _methods(scale: Scale) -> dict[Row, MethodConfig]:
    """Return the rows' methods: the paper's at this scale's learning rate, ours at its own."""
    paper, modern = (preset(name, image_size=scale.image_size, width=scale.width) for name in ("paper", "modern"))
    optimiser = paper.optimiser.model_copy(update={"learning_rate": scale.learning_rate})
    paper = paper.model_copy(update={"optimiser": optimiser})
    return {
        **{name: row(kind, paper) for name, kind in PAPER_ROWS.items()},
        **{name: row(kind, modern) for name, kind in MODERN_ROWS.items()},
    }


def _central(name: Row, method: MethodConfig, scale: Scale, cell: Cell, seed: int) -> CentralCase:
    """Return a case; a row without one of the tasks has none of its labels, and is the same in several cells."""
    return CentralCase(
        row=name,
        labels=cell[0] if method.network.classification else 0,
        masks=cell[1] if method.network.segmentation else 0,
        seed=seed,
        method=method,
        steps=scale.steps,
        images_per_group=scale.images_per_group,
    )


def _ablation(scale: Scale) -> Iterator[CentralCase | BaselineCase]:
    """Yield `modern` and, with one thing changed, its variants, in the first cell, after what needs no network."""
    modern, cell, seed = _methods(scale)["modern"], scale.cells[0], scale.seeds[0]
    yield from baselines_of(_central("paper", _methods(scale)["paper"], scale, cell, seed))
    yield _central("modern", modern, scale, cell, seed)
    for name, section, changes in ABLATIONS:
        yield _central(name, _changed(modern, section, changes), scale, cell, seed)
    yield from _lungs(modern, scale, cell, seed)


def _changed(method: MethodConfig, section: str, changes: dict[str, object]) -> MethodConfig:
    document = method.model_dump()
    document[section].update(changes)
    return MethodConfig.model_validate(document)


def _lungs(modern: MethodConfig, scale: Scale, cell: Cell, seed: int) -> Iterator[CentralCase]:
    """Yield the classifier alone, on whole images, on lungs cut out by a U-Net, and on these with standard greys."""
    alone = row("enc-ssl", modern)
    yield _central("class-only", alone, scale, cell, seed)
    for name, method in (
        ("class-only-lungs", alone),
        ("class-only-lungs-equalised", _changed(alone, "network", {"intensity": "equalised"})),
    ):
        case = _central(name, method, scale, cell, seed)
        yield case.model_copy(update={"lungs_by": row("u-net", modern), "lungs_masks": cell[1]})


ABLATIONS: Final[tuple[tuple[Row, str, dict[str, object]], ...]] = (
    ("weak-labelled-views", "views", {"strong_labelled": False}),
    ("stronger-views", "views", {"strong_operations": 3, "strong_magnitude": 15.0}),
    ("no-mask-cross-entropy", "objective", {"cross_entropy_weight": 0.0}),
    ("threshold-095", "objective", {"confidence_threshold": 0.95}),
    ("student-teacher", "objective", {"teacher": "student"}),
    ("unshared-unlabelled", "objective", {"share_unlabelled": False}),
    ("equalised-intensity", "network", {"intensity": "equalised"}),
    ("raw-saliency", "network", {"saliency_scale": "raw"}),
    ("no-affine", "network", {"norm_affine": False}),
)


def only(chosen: list[AnyCase], names: list[str]) -> list[AnyCase]:
    """Return the cases of these names, after those that they need; RunConfigError `case_unknown`."""
    known = {case_name(case): case for case in chosen}
    wanted: dict[str, AnyCase] = {}
    for name in names:
        if name not in known:
            raise RunConfigError("case_unknown", f"There is no case {name!r}. Choose from: {', '.join(known)}.")
        wanted |= {needed: known[needed] for needed in needs(known[name])} | {name: known[name]}
    return list(wanted.values())
