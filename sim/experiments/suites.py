"""Which cases make an experiment, at a scale: what two cores can do, what a GPU can, and a smoke test."""

from collections.abc import Iterator
from typing import Final, Literal

from multimix.config import Frozen, MethodConfig, RowName, preset, row
from multimix.contract.run_config import Scalar, read_run_config
from multimix.errors import RunConfigError
from sim.experiments.case import (
    AnyCase,
    BaselineCase,
    Budget,
    CentralCase,
    EnsembleCase,
    FederatedCase,
    Row,
    ScaleCase,
    case_name,
)

ExperimentName = Literal["paper", "ablation", "federated", "scale"]
ScaleName = Literal["smoke", "cpu", "full"]
Cell = tuple[Budget, Budget]  # labels, masks

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


class Scale(Frozen):
    """How large and how long."""

    image_size: int
    width: int = 16
    steps: int  # of every central training; equal for all rows
    images_per_group: int
    learning_rate: float  # of the paper's rows; 1e-4, the paper's own, needs thousands of steps
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]  # of all rows
    more_seeds: tuple[int, ...] = ()  # of the REPEATED ones
    rounds: int
    local_steps: int
    labels_each: int = 200  # of a hospital that has labels
    masks_each: int = 50
    many_sites: tuple[tuple[int, int], ...] = ((10, 16), (100, 16), (1000, 4))  # and the network's width


_FULL_GRID: Final[tuple[Cell, ...]] = tuple((labels, masks) for labels in (100, 1000, None) for masks in (10, 50, None))
SCALES: Final[dict[ScaleName, Scale]] = {
    "smoke": Scale(
        image_size=32,
        width=2,
        steps=2,
        images_per_group=2,
        learning_rate=1e-3,
        cells=((8, 4),),
        seeds=(0,),
        more_seeds=(1,),
        rounds=2,
        local_steps=1,
        labels_each=4,
        masks_each=2,
        many_sites=((3, 2),),
    ),
    "cpu": Scale(
        image_size=96,
        steps=300,
        images_per_group=4,
        learning_rate=1e-3,
        cells=((1000, 50), (100, 10)),
        seeds=(0,),
        more_seeds=(1, 2),
        rounds=10,
        local_steps=30,
    ),
    "full": Scale(
        image_size=256,
        steps=10_000,
        images_per_group=10,
        learning_rate=1e-4,
        cells=_FULL_GRID,
        seeds=(0, 1, 2, 3, 4),
        rounds=100,
        local_steps=100,
    ),
}


def cases(name: ExperimentName, scale: ScaleName) -> list[AnyCase]:
    """Return the cases of an experiment, the most telling first."""
    if name == "federated":
        return list(_federated(SCALES[scale]))
    if name == "scale":
        return list(_scale(SCALES[scale]))
    return list(_paper(SCALES[scale]) if name == "paper" else _ablation(SCALES[scale]))


def _paper(scale: Scale) -> Iterator[AnyCase]:
    reference = _methods(scale)["paper"]
    for labels, masks in scale.cells:
        yield from _baselines(_central("paper", reference, scale, (labels, masks), scale.seeds[0]))
    for seed in (*scale.seeds, *scale.more_seeds):
        for labels, masks in scale.cells:
            for name, method in _methods(scale).items():
                if seed in scale.seeds or name in REPEATED:
                    yield _central(name, method, scale, (labels, masks), seed)


def _baselines(case: CentralCase | FederatedCase) -> Iterator[BaselineCase]:
    for row_name in ("majority", "mean-mask", "thumbnail-ridge"):
        yield BaselineCase(row=row_name, of=case)


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


def _ablation(scale: Scale) -> Iterator[CentralCase]:
    """Yield `modern` and, with one thing changed, its variants, in the first cell."""
    modern, cell, seed = _methods(scale)["modern"], scale.cells[0], scale.seeds[0]
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

# Who owns what: two hospitals have labels only, two or three masks only, one neither.
LABELLED: Final = ("kermany", "nih14")
MASKED: Final = ("jsrt", "shenzhen", "montgomery")
UNLABELLED: Final = ("cohen",)
EVERYONE: Final = (*LABELLED, *MASKED, *UNLABELLED)
HELD_OUT: Final = ("montgomery", "nih14", "shenzhen")
MOST_IN_RAY: Final = 100
CONVENTION: Final = "mediastinum_excluded"


def _federated(scale: Scale) -> Iterator[AnyCase]:
    first = HELD_OUT[0]
    for held_out in HELD_OUT:
        yield from _baselines(_run("fedavg", scale, scale.seeds[0], {held_out}))
    for seed in scale.seeds:
        yield _run("fedavg", scale, seed, {first})
        yield _run("pooled", scale, seed, {first}, {"pooled": True}, sites=len(EVERYONE) - 1)
        for name in (*LABELLED, *MASKED):
            yield _local(name, scale, seed)
        for held_out in HELD_OUT[1:]:
            yield _run("fedavg", scale, seed, {held_out})
        for held_out in HELD_OUT:
            yield _ensemble(scale, seed, held_out)
        yield _run("fedprox", scale, seed, {first}, {"strategy": "fedprox"})
        yield _run("plain", scale, seed, {first}, {"weighting": "plain"})


def _local(name: str, scale: Scale, seed: int) -> FederatedCase:
    return _run(f"local-{name}", scale, seed, set(EVERYONE) - {name}, group="local")


def _ensemble(scale: Scale, seed: int, held_out: str) -> EnsembleCase:
    """Return the ensemble of the models of all that are not held out."""
    classifiers, segmenters = (
        tuple(_local(name, scale, seed) for name in names if name != held_out) for names in (LABELLED, MASKED)
    )
    like = _run("fedavg", scale, seed, {held_out})
    return EnsembleCase(row="ensemble", like=like, classifiers=classifiers, segmenters=segmenters)


def _run(
    name: Row,
    scale: Scale,
    seed: int,
    held_out: set[str],
    changes: dict[str, Scalar] | None = None,
    *,
    group: str = "",
    sites: int = 1,
) -> FederatedCase:
    """Return a run; `sites` multiplies the images of a step, so that pooled training sees as many as all sites."""
    budgets = {
        kind: ",".join(["0", *(f"{name}={each}" for name in owners if name not in held_out)])
        for kind, owners, each in (("labels", LABELLED, scale.labels_each), ("masks", MASKED, scale.masks_each))
    }
    values: dict[str, Scalar] = {
        "title": f"{name}, without {', '.join(sorted(held_out))}",
        "seed": seed,
        "image-size": scale.image_size,
        "width": scale.width,
        "rounds": scale.rounds,
        "local-steps": scale.local_steps,
        "images-per-group": scale.images_per_group * sites,
        "hold-out": ",".join(sorted(held_out)),
        "mask-convention": CONVENTION,
        "pictures": 0,
        **budgets,
    }
    config = read_run_config({**values, **(changes or {})})
    return FederatedCase(row=name, group=group or "without-" + "-".join(sorted(held_out)), config=config)


def _scale(scale: Scale) -> Iterator[ScaleCase]:
    for sites, width in scale.many_sites:
        for row_name in ("in-process", "ray"):
            if row_name == "in-process" or sites <= MOST_IN_RAY:
                values: dict[str, Scalar] = {
                    "title": f"{sites} sites, {row_name}",
                    "image-size": 64,
                    "width": width,
                    "rounds": 3,
                    "local-steps": 1,
                    "images-per-group": 1,
                    "dirichlet-sites": sites,
                    "pictures": 0,
                }
                yield ScaleCase(row=row_name, config=read_run_config(values))


def only(chosen: list[AnyCase], names: list[str]) -> list[AnyCase]:
    """Return the cases of these names; RunConfigError `case_unknown`."""
    known = {case_name(case): case for case in chosen}
    for name in names:
        if name not in known:
            raise RunConfigError("case_unknown", f"There is no case {name!r}. Choose from: {', '.join(known)}.")
    return [known[name] for name in names]
