"""What a model says of every test image, kept so that any figure, interval or paired test can be made later."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from multimix.contract.statistics import MEASURES
from multimix.data.store import Store
from multimix.evaluation import MASK_THRESHOLD, ModelTime, Prediction, predictions
from multimix.files import write_atomically
from multimix.metrics import measures
from multimix.network import MultiMixNetwork
from sim.experiments.sources import ScoredSet


@dataclass(frozen=True)
class Scores:
    """One set's images in the order of their rows; `n` of them.

    `probability` of pneumonia is NaN for a model without classifier; a measure is NaN where there is no mask or the
    model draws none.
    """

    row: npt.NDArray[np.int64]  # [n] of the store
    patient: npt.NDArray[np.int64]  # [n]
    label: npt.NDArray[np.int64]  # [n] 0 normal, 1 pneumonia, others are neither
    probability: npt.NDArray[np.float64]  # [n]
    measures: npt.NDArray[np.float64]  # [n, 5] in the order of MEASURES

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """Images that are scored for the class."""
        return np.isin(self.label, (0, 1)) & ~np.isnan(self.probability)

    @property
    def both_classes(self) -> bool:
        """Whether there are images of both classes: else a classifier is not scored."""
        return bool(set(self.label[self.labelled].tolist()) == {0, 1})

    @property
    def masked(self) -> npt.NDArray[np.bool_]:
        """Images that are scored for the mask."""
        return ~np.isnan(self.measures[:, 0])

    def measure(self, name: str) -> npt.NDArray[np.float64]:
        """Return one measure of all images."""
        return self.measures[:, MEASURES.index(name)]


def score(network: MultiMixNetwork, store: Store, chosen: ScoredSet) -> Scores:
    """Score a network on every image of a set."""
    return scored(store, chosen, predictions(network, store, chosen.rows, ModelTime()))


def scored(store: Store, chosen: ScoredSet, answers: Iterable[tuple[npt.NDArray[np.int64], Prediction]]) -> Scores:
    """Score answers, in the order of the set's rows, some rows at a time."""
    rows = chosen.rows
    probability = np.full(len(rows), np.nan)
    table = np.full((len(rows), len(MEASURES)), np.nan)
    done = 0
    for part, prediction in answers:
        if prediction.pneumonia is not None:
            probability[done : done + len(part)] = prediction.pneumonia
        if prediction.mask is not None:
            table[done : done + len(part)] = mask_measures(store, part, prediction.mask >= MASK_THRESHOLD)
        done += len(part)
    return new_scores(store, rows, probability, table)


def mask_measures(store: Store, rows: npt.NDArray[np.int64], masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the measures of masks [n, S, S] against the rows' own; NaN where a row has none."""
    table = np.full((len(rows), len(MEASURES)), np.nan)
    for position in np.flatnonzero(store.mask_row[rows] >= 0):
        truth = store.load_masks(rows[position : position + 1])[0, 0].numpy() >= MASK_THRESHOLD
        table[position] = measures(masks[position], truth)
    return table


def new_scores(
    store: Store, rows: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], table: npt.NDArray[np.float64]
) -> Scores:
    """Put probabilities [n] and measures [n, 5] of rows together with whose images they are."""
    return Scores(
        row=rows.astype(np.int64),
        patient=store.patient[rows].astype(np.int64),
        label=store.label[rows].astype(np.int64),
        probability=probability,
        measures=table,
    )


class ScoreFile:
    """The scores of one model, by the set and by how the model was asked, in one .npz file."""

    def __init__(self, scores: dict[str, Scores]) -> None:
        """Hold scores under names such as `montgomery/test`."""
        self.scores = scores

    def save(self, path: Path) -> None:
        """Write the arrays, all or nothing."""
        buffer = io.BytesIO()
        arrays = {
            f"{name}:{field.name}": getattr(scores, field.name)
            for name, scores in self.scores.items()
            for field in fields(Scores)
        }
        np.savez_compressed(buffer, **arrays)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            names = {key.rpartition(":")[0] for key in file.files}
            return cls(
                {
                    name: Scores(**{field.name: file[f"{name}:{field.name}"] for field in fields(Scores)})
                    for name in sorted(names)
                }
            )


def score_all(network: MultiMixNetwork, store: Store, sets: Iterable[ScoredSet]) -> dict[str, Scores]:
    """Score every set, named source/split."""
    return {f"{each.name}/{each.split}": score(network, store, each) for each in sets}
