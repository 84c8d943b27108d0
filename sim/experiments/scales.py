"""How large and how long an experiment is: what two cores can do, what a GPU can, and a smoke test."""

from typing import Final, Literal

from multimix.config import Frozen
from sim.experiments.case import Budget

ScaleName = Literal["smoke", "cpu", "full"]
Cell = tuple[Budget, Budget]  # labels, masks
HELD_OUT: Final = ("montgomery", "nih14", "shenzhen")


class PrivateScale(Frozen):
    """How long federations with patient-level privacy train, and the public model that they begin with.

    Few rounds of few steps with half of all patients each: every step is paid for with noise.
    """

    epsilons: tuple[float, ...] = (3.0, 8.0)
    rounds: int = 5
    local_steps: int = 4
    phantom_patients: int = 300  # at each of the phantoms' hospitals
    phantom_rounds: int = 10
    phantom_local_steps: int = 20
    learning_rate: float = 1e-3  # of the same run without privacy; the private one has its own


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
    site_images_per_group: int  # of a step at a hospital; pooled training takes as many as all hospitals together
    held_out: tuple[str, ...] = HELD_OUT  # one at a time
    proximal_mus: tuple[float, ...] = (0.01, 0.1)
    unlabelled_weights: tuple[float, ...] = (0.0, 0.01)  # in the average, beside the default's
    private: PrivateScale = PrivateScale()
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
        site_images_per_group=2,
        proximal_mus=(0.01,),
        unlabelled_weights=(0.0,),
        private=PrivateScale(
            epsilons=(8.0,), rounds=2, local_steps=1, phantom_patients=8, phantom_rounds=1, phantom_local_steps=1
        ),
        labels_each=4,
        masks_each=2,
        many_sites=((3, 2),),
    ),
    "cpu": Scale(
        image_size=96,
        steps=600,  # of 2: chosen on validation patients among 300 of 4, 600 of 2 and 1,200 of 1
        images_per_group=2,
        learning_rate=1e-3,
        cells=((1000, 50), (100, 10)),
        seeds=(0,),
        more_seeds=(1, 2),
        rounds=10,
        local_steps=30,
        site_images_per_group=2,
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
        site_images_per_group=10,
        held_out=(*HELD_OUT, "kermany", "jsrt", "cohen"),
        proximal_mus=(0.001, 0.01, 0.1, 1.0),
    ),
}
