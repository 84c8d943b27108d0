"""From finished cases to the figures of an experiment: one file that tables, page and README are made of."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from multimix.config import Frozen
from multimix.files import write_atomically
from sim.experiments.case import name_of
from sim.experiments.convergence import Convergence
from sim.experiments.inference import STATISTICS, Comparison, Estimate, compare, estimate, holm
from sim.experiments.record import SCORES, CaseRecord
from sim.experiments.scaling import Scaling
from sim.experiments.scores import ScoreFile, Scores

CLASS_METRICS: Final = ("accuracy", "balanced_accuracy", "auroc", "f1_normal", "f1_pneumonia", "score_std", "ece")
MASK_METRICS: Final = tuple(name for name in STATISTICS if name not in CLASS_METRICS)
FILE: Final = "results.json"
Figures = dict[str, dict[str, Estimate]]
"""Set (source/split) to metric to figure."""


class RowFigures(Frozen):
    """One row of one cell, over all its seeds."""

    row: str
    group: str  # the cell of the grid, or who is held out
    seeds: tuple[int, ...]
    figures: Figures
    parameters: int
    train_s: float  # mean over seeds
    pseudo_label_rate: float | None
    convergence: dict[str, Convergence]  # of the first seed
    scaling: Scaling | None = None
    epsilon_spent: dict[str, float] = Field(default_factory=dict)  # by site; of several seeds the most


class Difference(Frozen):
    """A paired comparison of two rows that was decided on before the runs; `p_holm` is corrected over the file."""

    first: str
    second: str
    first_group: str
    second_group: str
    set: str
    metric: str
    seeds: tuple[int, ...]
    comparison: Comparison
    p_holm: float


class Summary(Frozen):
    """Everything a table, a figure or a sentence about an experiment may say."""

    schema_version: int = 1
    experiment: str
    scale: str
    rows: tuple[RowFigures, ...]
    differences: tuple[Difference, ...]
    missing: tuple[str, ...]  # cases that are not finished
    cases: int
    code: tuple[str, ...]
    data_sha256: tuple[str, ...]
    devices: tuple[str, ...]
    software: dict[str, str]
    compute_s: float  # of all cases, one after the other

    @property
    def case_names(self) -> tuple[str, ...]:
        """What it was made of."""
        return tuple(name_of(each.row, each.group, seed) for each in self.rows for seed in each.seeds)


@dataclass(frozen=True)
class Contrast:
    """Two rows to compare, on some sets and metrics."""

    first: str
    second: str
    sets: tuple[tuple[str, str], ...]  # (source/split, metric)
    control: str = ""  # ask the second row under this control of its bridge
    groups: tuple[str, str] | None = None  # in these two cells; None: in every cell that has both


@dataclass(frozen=True)
class _Finished:
    record: CaseRecord
    scores: Mapping[str, Scores]


def summarise(
    experiment: str,
    scale: str,
    records: Mapping[str, CaseRecord],
    folder: Callable[[str], Path],
    *,
    contrasts: Sequence[Contrast],
    missing: Iterable[str],
    replicates: int,
) -> Summary:
    """Compute every figure and planned comparison of the finished cases; `folder` is where a case's scores are."""
    cells: dict[tuple[str, str], list[_Finished]] = defaultdict(list)
    for name, record in records.items():
        scores = ScoreFile.load(folder(name) / SCORES).scores
        cells[record.case.group, record.case.row].append(_Finished(record, scores))
    for finished in cells.values():
        finished.sort(key=lambda each: each.record.case.seed)
    rows = tuple(_row(group, row, finished, replicates) for (group, row), finished in cells.items())
    return Summary(
        experiment=experiment,
        scale=scale,
        rows=rows,
        differences=_corrected(list(_differences(cells, contrasts, replicates))),
        missing=tuple(missing),
        cases=len(records),
        code=tuple(sorted({record.code for record in records.values()})),
        data_sha256=tuple(sorted({record.data_sha256 for record in records.values()})),
        devices=tuple(sorted({record.device for record in records.values()})),
        software=next((record.software for record in records.values()), {}),
        compute_s=sum(record.train_s + record.score_s for record in records.values()),
    )


def _row(group: str, row: str, finished: Sequence[_Finished], replicates: int) -> RowFigures:
    figures: Figures = {}
    for name in [name for name in finished[0].scores if all(name in each.scores for each in finished)]:
        models = [each.scores[name] for each in finished]
        metrics = [
            *(CLASS_METRICS if models[0].both_classes else ()),
            *(MASK_METRICS if models[0].masked.any() else ()),
        ]
        if metrics:
            figures[name] = {metric: estimate(models, metric, replicates=replicates) for metric in metrics}
    rates = [each.record.pseudo_label_rate for each in finished if each.record.pseudo_label_rate is not None]
    return RowFigures(
        row=row,
        group=group,
        seeds=tuple(each.record.case.seed for each in finished),
        figures=figures,
        parameters=finished[0].record.parameters,
        train_s=sum(each.record.train_s for each in finished) / len(finished),
        pseudo_label_rate=sum(rates) / len(rates) if rates else None,
        convergence=finished[0].record.convergence,
        scaling=finished[0].record.scaling,
        epsilon_spent={
            site: max(each.record.epsilon_spent.get(site, math.inf) for each in finished)
            for site in finished[0].record.epsilon_spent
        },
    )


def _differences(
    cells: Mapping[tuple[str, str], Sequence[_Finished]], contrasts: Sequence[Contrast], replicates: int
) -> Iterator[Difference]:
    """Compare what is finished of the planned contrasts, over the seeds that both rows have."""
    for contrast in contrasts:
        groups = sorted({group for group, _ in cells})
        for one, two in [contrast.groups] if contrast.groups else zip(groups, groups, strict=True):
            first, second = cells.get((one, contrast.first), ()), cells.get((two, contrast.second), ())
            for name, metric in contrast.sets:
                compared = _compared(first, second, (name, name + contrast.control), metric, replicates)
                if compared is not None:
                    seeds, comparison = compared
                    yield Difference(
                        first=contrast.first,
                        second=contrast.second + contrast.control,
                        first_group=one,
                        second_group=two,
                        set=name,
                        metric=metric,
                        seeds=seeds,
                        comparison=comparison,
                        p_holm=1.0,
                    )


def _compared(
    first: Sequence[_Finished], second: Sequence[_Finished], names: tuple[str, str], metric: str, replicates: int
) -> tuple[tuple[int, ...], Comparison] | None:
    """Compare two rows, each on a set of its own name; None where they have no seed or no such set in common."""
    name, other = names
    ours, theirs = ({each.record.case.seed: each.scores for each in side} for side in (first, second))
    seeds = tuple(seed for seed in sorted(ours) if seed in theirs and name in ours[seed] and other in theirs[seed])
    if not seeds:
        return None
    comparison = compare(
        [ours[seed][name] for seed in seeds],
        [theirs[seed][other] for seed in seeds],
        metric,
        replicates=replicates,
    )
    return None if comparison is None else (seeds, comparison)


def _corrected(differences: list[Difference]) -> tuple[Difference, ...]:
    corrected = holm([each.comparison.p for each in differences])
    return tuple(each.model_copy(update={"p_holm": value}) for each, value in zip(differences, corrected, strict=True))


def write_summary(summary: Summary, folder: Path) -> Path:
    """Write the file and return it."""
    path = folder / FILE
    write_atomically(path, (summary.model_dump_json(indent=1) + "\n").encode(), mode=0o644)
    return path
