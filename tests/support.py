"""Small shared material of the tests: tiny networks, images, batches and stores, made in milliseconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multimix.batches import TrainingData
from multimix.config import NetworkConfig
from multimix.data.decode import Geometry, Preprocessing
from multimix.data.phantom import default_hospitals, draw_phantom
from multimix.data.sampling import Pools
from multimix.data.store import Store, open_store
from multimix.data.store_writer import StoreRow, write_store
from multimix.network import MultiMixNetwork, new_network
from multimix.objective import Batch

SIZE = 32  # the smallest image the network takes


def tiny_config(**changes: object) -> NetworkConfig:
    return NetworkConfig.model_validate({"image_size": SIZE, "width": 2, **changes})


def tiny_network(seed: int = 0, **changes: object) -> MultiMixNetwork:
    """A network of width 2 in float64, where rounding cannot hide a difference."""
    return new_network(tiny_config(**changes), seed).double()


def random_images(count: int, seed: int = 0, size: int = SIZE) -> Tensor:
    """Smooth-free random float64 images [count, 1, size, size] in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).random((count, 1, size, size)))


def tiny_batch(
    labelled: int = 2,
    masked: int = 2,
    teaches_classifier: Sequence[bool] = (True, False, True),
    teaches_decoder: Sequence[bool] = (False, True, True),
    seed: int = 0,
) -> Batch:
    """A float64 batch with random views and half-plane masks; no two images alike."""
    unlabelled = len(teaches_classifier)
    masks = torch.zeros(masked, 1, SIZE, SIZE, dtype=torch.float64)
    masks[..., : SIZE // 2] = 1.0
    return Batch(
        labelled=random_images(labelled, seed + 1),
        labels=torch.arange(labelled) % 2,
        masked=random_images(masked, seed + 2),
        masks=masks,
        weak=random_images(unlabelled, seed + 3),
        strong=random_images(unlabelled, seed + 4),
        teaches_classifier=torch.tensor(teaches_classifier, dtype=torch.bool),
        teaches_decoder=torch.tensor(teaches_decoder, dtype=torch.bool),
        log_prior=torch.zeros(2, dtype=torch.float64),
        dropout_seeds=tuple(range(100 + seed, 100 + seed + labelled + unlabelled + masked)),
    )


@dataclass(frozen=True)
class Film:
    """One image of a store; without a mask and label unless given."""

    image: np.ndarray  # [S, S] uint8
    patient: str
    label: str = "unknown"
    mask: np.ndarray | None = None  # [S, S] of 0 and 1
    convention: str = "lung"


def write_films(path: Path, films: Sequence[Film]) -> Store:
    """Write films into a new store, all in the train split, and open it."""
    size = films[0].image.shape[0]
    rows = [
        StoreRow(
            image=film.image,
            mask=None if film.mask is None else film.mask.astype(np.uint8),
            content_hash=f"image {index}",
            mask_hash="" if film.mask is None else f"mask {index}",
            patient=film.patient,
            source="here",
            site="",
            view="PA",
            label=film.label,
            mask_convention="" if film.mask is None else film.convention,
            split="train",
            geometry=Geometry(size, size, 1.0, 1.0, 0, 0),
        )
        for index, film in enumerate(films)
    ]
    write_store(path, rows, preprocessing=Preprocessing(image_size=size))
    return open_store(path)


def phantom_films(count: int, size: int = SIZE, seed: int = 0) -> list[Film]:
    """One labelled and masked phantom of each of `count` patients."""
    hospital = default_hospitals(1, seed)[0]
    phantoms = [draw_phantom(hospital, patient=i, seed=seed, image_size=size) for i in range(count)]
    return [
        Film(p.image, f"p{i}", "pneumonia" if p.pneumonia else "normal", p.mask.astype(np.uint8))
        for i, p in enumerate(phantoms)
    ]


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def training_data(
    store: Store,
    *,
    labelled: np.ndarray | None = None,
    unlabelled: np.ndarray | None = None,
    masked: np.ndarray | None = None,
    unmasked: np.ndarray | None = None,
) -> TrainingData:
    """A site whose pools are the rows given; a pool not given is empty."""
    pools = [rows() if pool is None else pool for pool in (labelled, unlabelled, masked, unmasked)]
    return TrainingData(site="a", store=store, pools=Pools(*pools))
