"""One experiment from its name to its files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from multimix.acceleration import EXACT, Acceleration
from sim.experiments.case import AnyCase, case_name
from sim.experiments.contrasts import contrasts_of
from sim.experiments.engine import Done, look_up, run_cases
from sim.experiments.page import write_page
from sim.experiments.record import CaseRecord
from sim.experiments.scales import ScaleName
from sim.experiments.strips import Strip, case_strips
from sim.experiments.suites import ExperimentName, cases, only
from sim.experiments.summary import Summary, summarise, write_summary
from sim.experiments.tables import write_tables
from sim.experiments.work import Place

CASES: Final = "cases"
PICTURED: Final = ("modern", "fedavg")
PICTURED_SETS: Final = ("jsrt/test", "montgomery/test", "montgomery/all", "nih14/test", "chex224/test", "kermany/test")


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    name: ExperimentName
    scale: ScaleName
    data: Path
    out: Path
    cache: Path
    workers: int = 1
    minutes: float | None = None
    only: tuple[str, ...] = ()
    replicates: int = 1000
    acceleration: Acceleration = EXACT

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.out / self.scale / self.name

    @property
    def place(self) -> Place:
        """Where its cases work: experiments of a scale share them, so none is done twice."""
        return Place(
            data=self.data, out=self.out / self.scale / CASES, cache=self.cache, acceleration=self.acceleration
        )

    def cases(self) -> list[AnyCase]:
        """Return what there is to do; RunConfigError `case_unknown`."""
        everything = cases(self.name, self.scale)
        return only(everything, list(self.only)) if self.only else everything


def run_experiment(
    order: Order,
    *,
    told: Callable[[CaseRecord, Done], None] | None = None,
) -> tuple[Done, Summary]:
    """Do what is left of an experiment, then write its summary and tables from all that is finished.

    Raises:
        InputError: the data cannot be used, a case is not known, or the folder cannot be written.
    """
    worked = run_cases(order.cases(), order.place, workers=order.workers, minutes=order.minutes, told=told)
    everything = cases(order.name, order.scale)
    done, _ = look_up(everything, order.place)
    summary = summarise(
        order.name,
        order.scale,
        done.records,
        lambda name: order.place.out / name,
        contrasts=contrasts_of(order.name),
        missing=[case_name(case) for case in everything if case_name(case) not in done.records],
        replicates=order.replicates,
    )
    write_summary(summary, order.folder)
    write_tables(summary, order.folder)
    write_page(summary, order.folder, list(_strips(order, done)))
    return worked, summary


def _strips(order: Order, done: Done) -> Iterator[Strip]:
    """Picture what the first finished case of a telling row draws, of those whose model is here."""
    for record in done.records.values():
        if record.case.row in PICTURED:
            strips = case_strips(order.place.folder(record.case), order.place.store(record.case), PICTURED_SETS)
            yield from strips
            if strips:
                return
