"""Batches of noise in float64, networks for them, and one patient's share of a batch."""

import torch

from multimix.config import MethodConfig
from multimix.network import MultiMixNetwork, new_network
from multimix.objective import Batch

SIZE = 32


def networks(method: MethodConfig) -> tuple[MultiMixNetwork, MultiMixNetwork]:
    """A student and a teacher that differ."""
    student, teacher = new_network(method.network, 0).double(), new_network(method.network, 1).double()
    for network in (student, teacher):  # norms of weight 1 and bias 0 would hide mistakes in them
        generator = torch.Generator().manual_seed(7)
        for name, parameter in network.named_parameters():
            if ".norm" in name:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return student, teacher


def batch_of(*, labelled: int, unlabelled: int, masked: int, seed: int = 0) -> Batch:
    """Unlabelled images teach both tasks, the class, the mask, by turns."""
    generator = torch.Generator().manual_seed(seed)

    def images(count: int) -> torch.Tensor:
        return torch.rand(count, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)

    turn = torch.arange(unlabelled) % 3
    return Batch(
        labelled=images(labelled),
        labels=torch.arange(labelled) % 2,
        masked=images(masked),
        masks=(images(masked) > 0.5).double(),
        weak=images(unlabelled),
        strong=images(unlabelled),
        teaches_classifier=turn != 2,
        teaches_decoder=turn != 1,
        log_prior=torch.tensor([-0.3, -0.9], dtype=torch.float64),
        dropout_seeds=tuple(range(100 * seed, 100 * seed + labelled + unlabelled + masked)),
    )


def share(batch: Batch, patient: torch.Tensor, number: int) -> Batch:
    """The images of one patient; `patient` numbers all images: labelled, unlabelled, masked."""
    a, u = len(batch.labelled), len(batch.weak)
    mine = patient == number
    labelled, unlabelled, masked = mine[:a], mine[a : a + u], mine[a + u :]
    return Batch(
        labelled=batch.labelled[labelled],
        labels=batch.labels[labelled],
        masked=batch.masked[masked],
        masks=batch.masks[masked],
        weak=batch.weak[unlabelled],
        strong=batch.strong[unlabelled],
        teaches_classifier=batch.teaches_classifier[unlabelled],
        teaches_decoder=batch.teaches_decoder[unlabelled],
        log_prior=batch.log_prior,
        dropout_seeds=tuple(seed for seed, own in zip(batch.dropout_seeds, mine.tolist(), strict=True) if own),
    )
