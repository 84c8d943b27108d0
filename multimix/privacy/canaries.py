"""Canaries: patients that an auditor adds to see what training tells of a patient.

The network of an audit has one more parameter, the audit head, that no image uses. Canary j is a patient whose images
have the loss 20 C head[j]: the largest contribution that clipping allows, all of it on coordinate j of a sum whose
other coordinates it leaves alone. So each coordinate of the noised audit head answers "was canary j in this step?" as
well as any statistic can (one-run auditing: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, section 6).

Canaries are rows behind the store's own, in the pools of both tasks, every second labelled. Sampling, clipping,
noise and the order of it all are those of real patients (`multimix.privacy.training`); only their pixels do not exist.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from multimix.batches import TrainingData
from multimix.data.sampling import Pools
from multimix.network import MultiMixNetwork

AUDIT_HEAD: Final = "audit_head"
RAW_NORM: Final = 20.0  # of a canary image's gradient, in units of the clip norm

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CanaryImages:
    """Some images of one canary, in place of a batch."""

    coordinate: int
    images: int
    slope: float

    def loss(self, network: MultiMixNetwork) -> Tensor:
        """Return the sum of the images' losses: its gradient is `slope` times their number, on one coordinate."""
        return network.get_parameter(AUDIT_HEAD)[self.coordinate] * (self.slope * self.images)


@dataclass(frozen=True, eq=False)
class Canaries:
    """Which canaries take part in a run, and how many images each has."""

    included: Bools  # [canaries]
    images: int
    first_row: int  # the store's own rows are below it
    slope: float  # of an image's loss on its coordinate

    @property
    def coordinates(self) -> npt.NDArray[np.int64]:
        """Coordinates of those that take part, in the order of their rows."""
        return np.flatnonzero(self.included)

    def of(self, rows: npt.NDArray[np.int64]) -> CanaryImages | None:
        """Return the canary that these rows of one patient belong to; None where they are images of the store."""
        if not len(rows) or rows[0] < self.first_row:
            return None
        coordinate = self.coordinates[(rows[0] - self.first_row) // self.images]
        return CanaryImages(int(coordinate), len(rows), self.slope)


def plant(data: TrainingData, included: Bools, *, images: int, clip_norm: float) -> tuple[TrainingData, Canaries]:
    """Return the training data with a patient more for each canary that takes part."""
    canaries = Canaries(included, images, len(data.store), RAW_NORM * clip_norm)
    taking_part = int(included.sum())
    rows = len(data.store) + np.arange(taking_part * images)
    labelled = (np.arange(len(rows)) // images) % 2 == 0
    first = int(data.store.patient.max()) + 1
    patients = np.concatenate([data.store.patient, first + np.arange(len(rows)) // images]).astype(np.int32)
    return replace(
        data, store=replace(data.store, patient=patients), pools=_joined(data.pools, rows, labelled)
    ), canaries


def add_head(network: MultiMixNetwork, canaries: int) -> None:
    """Give a network an audit head of zeros; it is not among the arrays that are sent."""
    device = next(network.parameters()).device
    network.register_parameter(AUDIT_HEAD, nn.Parameter(torch.zeros(canaries, device=device)))


def _joined(pools: Pools, rows: npt.NDArray[np.int64], labelled: Bools) -> Pools:
    with_labels, without = rows[labelled], rows[~labelled]
    return Pools(
        labelled_classification=np.concatenate([pools.labelled_classification, with_labels]),
        unlabelled_classification=np.concatenate([pools.unlabelled_classification, without]),
        labelled_segmentation=np.concatenate([pools.labelled_segmentation, with_labels]),
        unlabelled_segmentation=np.concatenate([pools.unlabelled_segmentation, without]),
    )
