"""The radiographs of the paper's experiments, and who trains and who tests on them.

In-domain: the classifier learns on chex224 (children), the decoder on jsrt (adults). Cross-domain, never trained on:
nih14 for the class, montgomery for the mask, and shenzhen for the mask beside it. The splits are fixed: an
experiment's seed moves which images keep their labels, never who tests.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from multimix.batches import TrainingData
from multimix.data.cache import Progress, cached_store
from multimix.data.decode import Preprocessing
from multimix.data.manifest import Record, Split, read_manifest, split_ranked
from multimix.data.sampling import Budget, Pools, make_pools
from multimix.data.store import Store
from multimix.errors import ManifestError
from multimix.randomness import derive_seed

CLASSIFIED, SEGMENTED = "chex224", "jsrt"
CROSS_DOMAIN: Final = ("nih14", "montgomery", "shenzhen")
_JSRT_SPLIT: Final = (111, 13, 123)  # of the paper
_CHEX_VALIDATION: Final = 0.1  # of the official training patients: the set's own 16 validation images are not here
_CHEX_FILE: Final = re.compile(r"(person\d+)_|(?:NORMAL2-)?(IM-\d+)-")
_SPLITS_SEED: Final = 0
_SITE: Final = "central"

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoredSet:
    """Rows that a figure is of."""

    name: str  # of the source
    split: str  # train, validation, test, or all
    rows: Rows


def paper_store(data: Path, *, cache: Path, image_size: int, progress: Progress | None = None) -> Store:
    """Return the decoded images of a folder with `chex224/` and `cxr/manifest.csv`.

    Raises:
        ManifestError: `experiment_data` where a folder is missing; others where an image cannot be used.
    """
    for part in (data / "chex224", data / "cxr" / "manifest.csv"):
        if not part.exists():
            raise ManifestError(
                "experiment_data",
                f"There is no {part}. The experiments need a folder with chex224/ and cxr/manifest.csv: give it with "
                "--data or MULTIMIX_DATA.",
            )
    records = (*_chex(data), *_cxr(data))
    preprocessing = Preprocessing(image_size=image_size, fit="stretch")  # every source here is square upstream
    return cached_store(
        records, root=data, cache=cache, preprocessing=preprocessing, split_seed=_SPLITS_SEED, progress=progress
    )


def training_data(store: Store, *, labels: int | None, masks: int | None, seed: int, shared: bool) -> TrainingData:
    """Return what one central training may use of the in-domain sources; budgets of None are everything.

    With `shared` unlabelled images each serves both tasks, whichever source it is of; without, as in the paper, the
    class is learned on chex224 alone and the mask on jsrt alone.

    Raises:
        ManifestError: `budget_too_large`.
    """
    train = store.split == "train"
    everything = np.flatnonzero(train & np.isin(store.source, (CLASSIFIED, SEGMENTED)))
    chex, jsrt = (everything[store.source[everything] == name] for name in (CLASSIFIED, SEGMENTED))
    by_label = make_pools(store, chex, budget=Budget(labels, 0, exact=True), conventions=None, seed=seed, site=_SITE)
    by_mask = make_pools(store, jsrt, budget=Budget(0, masks, exact=True), conventions=None, seed=seed, site=_SITE)
    labelled, masked = by_label.labelled_classification, by_mask.labelled_segmentation
    pools = Pools(
        labelled_classification=labelled,
        unlabelled_classification=np.setdiff1d(everything if shared else chex, labelled),
        labelled_segmentation=masked,
        unlabelled_segmentation=np.setdiff1d(everything if shared else jsrt, masked),
    )
    return TrainingData(site=_SITE, store=store, pools=pools)


def scored_sets(store: Store) -> tuple[ScoredSet, ...]:
    """Return what is scored: the in-domain validation and test patients, and all of the cross-domain sources."""
    found = [
        ScoredSet(source, split, np.flatnonzero((store.source == source) & (store.split == split)))
        for source in (CLASSIFIED, SEGMENTED, *CROSS_DOMAIN)
        for split in ("validation", "test")
    ]
    return tuple(each for each in found if len(each.rows))


def _chex(data: Path) -> Iterator[Record]:
    """Name the images of the official split; equal files are of one patient, whatever they are called."""
    files = sorted((data / "chex224").rglob("*.jpeg"))
    if not files:
        raise ManifestError("experiment_data", f"There is no .jpeg below {data / 'chex224'}.")
    named = [(file, _chex_patient(file)) for file in files]
    one = _one_patient(named)
    patients = sorted({one[patient] for _, patient in named})
    validation = _ranked_share([patient for patient in patients if patient.startswith("train")], _CHEX_VALIDATION)
    for file, name in named:
        patient = one[name]
        train: Split = "validation" if patient in validation else "train"
        yield Record(
            image=file.relative_to(data).as_posix(),
            patient_id=patient,
            source=CLASSIFIED,
            label="pneumonia" if file.parent.name == "PNEUMONIA" else "normal",
            split=train if patient.startswith("train") else "test",
        )


def _one_patient(named: Sequence[tuple[Path, str]]) -> dict[str, str]:
    """Return the name that stands for each patient: those whose files are equal, through others too, are one."""
    stands = {patient: patient for _, patient in named}

    def first(patient: str) -> str:
        while stands[patient] != patient:
            patient = stands[patient]
        return patient

    owners: dict[str, str] = {}
    for file, patient in named:
        owner = owners.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), patient)
        low, high = sorted((first(owner), first(patient)))
        stands[high] = low
    return {patient: first(patient) for patient in stands}


def _split_of(record: Record, jsrt: Mapping[str, Split]) -> Split:
    return jsrt[record.patient_id] if record.source == SEGMENTED else "test"


def _chex_patient(file: Path) -> str:
    """Return the patient that a file name tells; numbers restart between train and test."""
    found = _CHEX_FILE.match(file.name)
    if not found:
        raise ManifestError("experiment_data", f"{file} names no patient: personN_... or IM-N-... is expected.")
    return f"{file.parent.parent.name}-{found[1] or found[2]}"


def _ranked_share(patients: Sequence[str], share: float) -> frozenset[str]:
    ranked = _ranked(patients)
    return frozenset(ranked[: round(share * len(ranked))])


def _ranked(patients: Sequence[str]) -> list[str]:
    return sorted(patients, key=lambda patient: (derive_seed(_SPLITS_SEED, "experiments", patient), patient))


def _cxr(data: Path) -> Iterator[Record]:
    """Name the images of the other sources: jsrt in the paper's proportions, the cross-domain ones for testing."""
    records = [r for r in read_manifest(data / "cxr" / "manifest.csv") if r.source in (SEGMENTED, *CROSS_DOMAIN)]
    jsrt = _ranked(sorted({record.patient_id for record in records if record.source == SEGMENTED}))
    total = sum(_JSRT_SPLIT)
    train, validation, test = (count / total for count in _JSRT_SPLIT)
    splits = dict(zip(jsrt, split_ranked(len(jsrt), (train, validation, test)), strict=True))
    for record in records:
        files = {key: f"cxr/{getattr(record, key)}" for key in ("image", "mask") if getattr(record, key)}
        yield record.model_copy(update={**files, "split": _split_of(record, splits)})
