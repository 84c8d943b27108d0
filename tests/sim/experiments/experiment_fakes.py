"""A small folder of made-up radiographs in the layout of the real one, and scores written by hand."""

import csv
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from multimix.contract.statistics import MEASURES
from multimix.data.phantom import default_hospitals, draw_phantom
from sim.experiments.case import AnyCase, case_name, case_sha256
from sim.experiments.record import SCORES, CaseRecord, write_record
from sim.experiments.scores import ScoreFile, Scores

SIDE = 32
HEART, OUT = "V7 (includes area behind heart)", "expert (excludes mediastinum)"
# Patients, labels that take turns, and whose masks: the first ones have one.
SOURCES = {
    "jsrt": (19, ("normal", "other"), OUT, 19),
    "montgomery": (5, ("normal", "other"), OUT, 5),
    "shenzhen": (10, ("normal", "other"), OUT, 9),
    "nih14": (10, ("normal", "pneumonia"), "", 0),
    "kermany": (10, ("normal", "pneumonia"), HEART, 10),
    "cohen": (10, ("pneumonia", "unknown"), HEART, 3),
}
TRAIN = {
    "NORMAL": [
        *(f"IM-0{n}-0001.jpeg" for n in range(115, 121)),
        *(f"NORMAL2-IM-0{n}-0001.jpeg" for n in range(117, 124)),
    ],
    "PNEUMONIA": [f"person{n}_{kind}_{n}.jpeg" for n in range(1, 9) for kind in ("virus", "bacteria")],
}
TEST = {
    "NORMAL": ["IM-0115-0001.jpeg", "NORMAL2-IM-0117-0001.jpeg", "NORMAL2-IM-0118-0001.jpeg"],
    "PNEUMONIA": ["person1_virus_3.jpeg", "person1_virus_4.jpeg", "person2_bacteria_5.jpeg"],
}


def write_noise(path: Path, number: int) -> None:
    """A JPEG whose pixels no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE), np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def write_chex(folder: Path, splits: dict[str, dict[str, Sequence[str]]]) -> None:
    """Noise under the names of each split and class."""
    names = [(split, label, name) for split, labels in splits.items() for label in labels for name in labels[label]]
    for number, (split, label, name) in enumerate(names):
        write_noise(folder / "chex224" / split / label / name, number)


def write_cxr(folder: Path, sources: dict[str, tuple[int, tuple[str, ...], str, int]]) -> None:
    """Phantoms, one a patient; patients are numbered anew in every source."""
    cxr = folder / "cxr"
    rows = []
    for hospital, (source, (count, labels, origin, masks)) in enumerate(sources.items()):
        (cxr / source).mkdir(parents=True)
        for n in range(count):
            phantom = draw_phantom(default_hospitals(1, hospital)[0], patient=n, seed=hospital, image_size=SIDE)
            image, mask = f"{source}/{n}.jpg", f"{source}/{n}.png" if n < masks else ""
            Image.fromarray(phantom.image).save(cxr / image)
            if mask:
                Image.fromarray(phantom.mask).save(cxr / mask)
            rows.append([image, mask, source, source, labels[n % len(labels)], f"{source}-{n}", origin if mask else ""])
    write_manifest(cxr, rows)


def write_manifest(cxr: Path, rows: Sequence[Sequence[str]]) -> None:
    with (cxr / "manifest.csv").open("w", newline="") as file:
        header = ["image", "mask", "source", "site", "label", "patient_id", "mask_origin"]
        csv.writer(file).writerows([header, *rows])


def copy_of(data: Path, target: Path) -> Path:
    """The same folder elsewhere, to change it."""
    return Path(shutil.copytree(data, target))


def scores_of(
    probability: Sequence[float] | None = None,
    label: Sequence[int] | None = None,
    *,
    patient: Sequence[int] | None = None,
    dice: Sequence[float] | None = None,
) -> Scores:
    """Scores of n images, one a patient unless given; every measure of an image is its Dice."""
    count = len(probability if probability is not None else dice)
    values = np.full(count, np.nan) if dice is None else np.array(dice, float)
    return Scores(
        row=np.arange(count),
        patient=np.arange(count) if patient is None else np.array(patient),
        label=np.full(count, -1) if label is None else np.array(label),
        probability=np.full(count, np.nan) if probability is None else np.array(probability, float),
        measures=np.repeat(values[:, None], len(MEASURES), axis=1),
    )


def record_of(case: AnyCase, **fields: object) -> CaseRecord:
    """What a finished case would leave."""
    given = {
        "case": case,
        "case_sha256": case_sha256(case),
        "data_sha256": "data",
        "code": "code",
        "software": {"torch": "0"},
        "device": "cpu",
        "finished": datetime(2026, 1, 1, tzinfo=UTC),
        "train_s": 10.0,
        "score_s": 1.0,
        "parameters": 7,
    }
    return CaseRecord.model_validate(given | fields)


def keep_scores(folder: Path, case: AnyCase, scores: dict[str, Scores]) -> None:
    """Write the scores of a case where a summary looks for them."""
    target = folder / case_name(case) / SCORES
    target.parent.mkdir(parents=True, exist_ok=True)
    ScoreFile(scores).save(target)


def answers_of_every_case(folder: Path, cases: Sequence[AnyCase], data_sha256: str) -> None:
    """Leave in a folder what an experiment leaves that is finished."""
    for case in cases:
        keep_scores(folder, case, {"chex224/test": scores_of([0.2, 0.7], [0, 1])})
        write_record(folder / case_name(case), record_of(case, data_sha256=data_sha256))
