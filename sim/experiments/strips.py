"""The best, median and worst image of a set as pictures: the radiograph, outlines of the masks, and the saliency.

Pictures are for the page on the machine that has the data: the radiographs' licences do not let all of them be passed
on, so no strip is ever committed. A caption names no patient, file or row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from multimix.data.store import LABEL_CODES, Store
from multimix.evaluation import MASK_THRESHOLD, predict
from multimix.network import MultiMixNetwork
from multimix.pictures import overlay_strip, png_bytes
from multimix.weights import load_model
from sim.experiments.federated import RUN
from sim.experiments.record import MODEL, SCORES, read_record
from sim.experiments.scores import ScoreFile, Scores

_PANEL_PX: Final = 192  # a panel is at least so wide, in whole multiples of the image
_LABELS: Final = {code: name for name, code in LABEL_CODES.items()}
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Strip:
    """A PNG file's bytes, and what they show."""

    png: bytes
    caption: str


def case_strips(folder: Path, store: Store, sets: Sequence[str]) -> tuple[Strip, ...]:
    """Return the strips of a finished case, set by set (source/split); none of a case that keeps no model.

    Nor of one whose model sees images cut to their lungs: the store has them whole.

    Raises:
        InputError: `model_unreadable`.
    """
    record = read_record(folder)
    model = next((path for path in (folder / MODEL, folder / RUN / MODEL) if path.exists()), None)
    if record is None or model is None or getattr(record.case, "lungs_by", None) is not None:
        return ()
    network, scores = load_model(model), ScoreFile.load(folder / SCORES).scores
    title = f"{record.case.row} {record.case.group}"
    return tuple(
        strip
        for name in sets
        if name in scores
        for strip in set_strips(network, store, scores[name], title=f"{title} on {name}")
    )


def set_strips(network: MultiMixNetwork, store: Store, scores: Scores, *, title: str) -> tuple[Strip, ...]:
    """Return the best, median and worst image of a set: by Dice, or where there is no mask by the error of the score.

    Args:
        network: The model that gave the scores.
        store: Where the images are.
        scores: Of the set.
        title: What captions begin with: the model and the set.
    """
    by, order = _ranked(scores)
    strips = []
    for rank, position in _chosen(order).items():
        caption = f"{title}: {rank} of {len(order)} by {by}; {_figures(scores, position)}"
        strips.append(Strip(_picture(network, store, scores.row[position]), caption))
    return tuple(strips)


def _ranked(scores: Scores) -> tuple[str, Rows]:
    """Return what images are ranked by, and their positions from the best to the worst."""
    if scores.masked.any():
        chosen, loss = scores.masked, -scores.measure("dice")
        by = "Dice"
    else:
        chosen, loss = scores.labelled, np.abs(scores.label - scores.probability)
        by = "the distance of score and label"
    positions = np.flatnonzero(chosen)
    return by, positions[np.argsort(loss[positions], kind="stable")]


def _chosen(order: Rows) -> dict[str, int]:
    """Return positions by rank; of few images, each once."""
    if not len(order):
        return {}
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    once = {place: rank for rank, place in reversed(places.items())}
    return {rank: int(order[place]) for rank, place in places.items() if once[place] == rank}


def _figures(scores: Scores, position: int) -> str:
    dice, probability = scores.measure("dice")[position], scores.probability[position]
    said = [f"label {_LABELS[int(scores.label[position])]}"]
    if not np.isnan(dice):
        said.insert(0, f"Dice {dice:.3f}")
    if not np.isnan(probability):
        said.append(f"score of pneumonia {probability:.2f}")
    return ", ".join(said)


def _picture(network: MultiMixNetwork, store: Store, row: np.int64) -> bytes:
    rows = np.array([row], dtype=np.int64)
    image = store.load_images(rows)
    prediction = predict(network, image)
    truth = store.load_masks(rows)[0, 0].numpy() >= MASK_THRESHOLD if store.mask_row[row] >= 0 else None
    strip = overlay_strip(
        (image[0, 0].numpy() * 255).round().astype(np.uint8),
        prediction=prediction.mask[0] >= MASK_THRESHOLD if prediction.mask is not None else None,
        truth=truth,
        saliency=prediction.saliency[0] if prediction.saliency is not None else None,
        scale=max(1, -(-_PANEL_PX // store.image_size)),
    )
    return png_bytes(strip)
