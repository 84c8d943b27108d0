"""The cases of the hospitals' table, and those of many sites."""

from collections.abc import Iterator
from typing import Final

from multimix.contract.run_config import PRETRAINING_DEFAULTS, Scalar, read_run_config
from sim.experiments.case import (
    AnyCase,
    EnsembleCase,
    FederatedCase,
    PhantomCase,
    Row,
    ScaleCase,
    baselines_of,
)
from sim.experiments.owners import EVERYONE, LABELLED, MASKED
from sim.experiments.scales import Scale

MOST_IN_RAY: Final = 100
WITHOUT: Final = "without-"  # begins the group of the rows for which a hospital is held out
LOCAL: Final = "local"  # the group of hospitals alone
CONVENTION: Final = "mediastinum_excluded"
PHANTOMS: Final[Row] = "phantoms"  # the public model that private runs begin with
NOT_PRIVATE: Final[Row] = "not-private"  # the same without privacy


def hospitals_table(scale: Scale) -> Iterator[AnyCase]:
    """Yield the baselines, the federation and what it is compared with, for each hospital that is held out."""
    first, *others = scale.held_out
    for held_out in scale.held_out:
        yield from baselines_of(_run("fedavg", scale, scale.seeds[0], {held_out}))
    for seed in scale.seeds:
        yield _run("fedavg", scale, seed, {first})
        yield _run("pooled", scale, seed, {first}, {"pooled": True}, sites=len(EVERYONE) - 1)
        for name in (*LABELLED, *MASKED):
            yield _local(name, scale, seed)
        yield _run("plain", scale, seed, {first}, {"weighting": "plain"})
        for held_out in others:
            yield _run("fedavg", scale, seed, {held_out})
        for held_out in scale.held_out:
            yield _ensemble(scale, seed, held_out)
        for mu in scale.proximal_mus:
            yield _run(fedprox(mu), scale, seed, {first}, {"strategy": "fedprox", "proximal-mu": mu})
        for weight in scale.unlabelled_weights:
            yield _run(_with("unlabelled-weight", weight), scale, seed, {first}, {"unlabelled-weight": weight})
        yield from _private(scale, seed, {first})


def group_without(held_out: set[str]) -> str:
    """Return the group of rows for which hospitals are held out."""
    return WITHOUT + "-".join(sorted(held_out))


def fedprox(mu: float) -> Row:
    """Return the row of a mu."""
    return _with("fedprox-mu", mu)


def _with(name: str, value: float) -> Row:
    return f"{name}-{value:g}".replace(".", "-")


def _private(scale: Scale, seed: int, held_out: set[str]) -> Iterator[PhantomCase | FederatedCase]:
    """Yield a model of phantoms, federations with privacy for patients that begin with it, and one without.

    All have all labels and masks: patients whose labels are not used would pay for noise all the same.
    """
    public = _phantoms(scale, seed, held_out)
    yield public
    begun: dict[str, Scalar] = {"preset": "private", "labels": "", "masks": ""}
    private: dict[str, Scalar] = {
        "dp": "patient",
        "dp-sampling-rate": 0.5,
        "dp-parameters": "affine",
        "rounds": scale.private.rounds,
        "local-steps": scale.private.local_steps,
    }
    rows: dict[Row, dict[str, Scalar]] = {
        **{f"epsilon-{epsilon:g}": {**private, "dp-epsilon": epsilon} for epsilon in scale.private.epsilons},
        NOT_PRIVATE: {"learning-rate": scale.private.learning_rate},
    }
    for name, changes in rows.items():
        case = _run(name, scale, seed, held_out, {**begun, **changes})
        yield case.model_copy(update={"from_phantoms": public})


def _phantoms(scale: Scale, seed: int, held_out: set[str]) -> PhantomCase:
    """Return the public model of private runs."""
    private = scale.private
    length = {
        "phantom-patients": private.phantom_patients,
        "rounds": private.phantom_rounds,
        "local-steps": private.phantom_local_steps,
    }
    shape = {"image-size": scale.image_size, "width": scale.width, "seed": seed, "pictures": 0}
    return PhantomCase(
        group=group_without(held_out),
        config=read_run_config({"title": "phantoms", **PRETRAINING_DEFAULTS, **shape, **length}),
        scored=_run("fedavg", scale, seed, held_out).config,
    )


def _local(name: str, scale: Scale, seed: int) -> FederatedCase:
    return _run(f"local-{name}", scale, seed, set(EVERYONE) - {name}, group=LOCAL)


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
        "images-per-group": scale.site_images_per_group * sites,
        "hold-out": ",".join(sorted(held_out)),
        "mask-convention": CONVENTION if set(MASKED) - held_out else "all",  # nobody has masks: none are used
        "split-seed": 0,  # all seeds are scored on the same patients
        "pictures": 0,
        **budgets,
    }
    config = read_run_config({**values, **(changes or {})})
    return FederatedCase(row=name, group=group or group_without(held_out), config=config, method=config.method())


def many_sites(scale: Scale) -> Iterator[ScaleCase]:
    """Yield short runs of many sites, by the engines that can hold so many."""
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
