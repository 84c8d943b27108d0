"""Clipped per-patient gradients (Abadi et al. 2016, arXiv 1607.00133), the patient as the unit.

A patient's gradient is the sum over all the patient's images, both views and both tasks; it is clipped once to
L2 norm C, and clipped gradients are added up in float64.

**Every patient is computed alone.** Per-record gradients of a whole batch (`torch.func.vmap`) are the usual way and the
tests hold them equal, but the kernels under them round differently for batches of different sizes, and weights
chosen by an attacker can blow that rounding up until removing one patient changes every other's gradient. Computed
alone, a patient's contribution is a function of that patient's images, the weights and the patient's own seeds, bit for
bit. On a CPU it is also faster, since one gradient is held at a time.

Guarantee: adding or removing one patient changes the sum by at most C; `check_independence` refuses networks that
carry anything from one patient to the next.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from multimix.config import ObjectiveConfig
from multimix.errors import Refused
from multimix.network import Dropout, MultiMixNetwork
from multimix.objective import Batch, Slots, losses, targets
from multimix.privacy.canaries import CanaryImages
from multimix.saliency import view

Named = dict[str, Tensor]
ONE_EACH = Slots(labelled=1, masked=1, unlabelled_classification=1, unlabelled_segmentation=1)
_TOLERANCE = 1e-4  # of the guard, relative: batched kernels may round differently, another patient's images never


@dataclass(frozen=True)
class PrivateStep:
    """What the loss of a step needs besides the images."""

    student: MultiMixNetwork
    teacher: MultiMixNetwork
    objective: ObjectiveConfig
    trainable: tuple[str, ...]  # names of the parameters that learn
    ramp: float = 1.0

    @cached_property
    def learning(self) -> Named:
        """The parameters that learn, looked up once a step."""
        return {name: self.student.get_parameter(name) for name in self.trainable}

    def loss(self, batch: Batch | CanaryImages) -> Tensor:
        """Return the loss of some images of one patient. Task weights are constants, never divided by counts."""
        if isinstance(batch, CanaryImages):
            return batch.loss(self.student)
        target = targets(self.student, self.teacher, batch, self.objective)
        dropout = Dropout(batch.dropout_seeds, self.objective.dropout, self.objective.dropout_kind)
        terms = losses(self.student, batch, target, self.objective, dropout)
        return terms.total(ONE_EACH, self.objective, self.ramp)


def patient_gradient(step: PrivateStep, batches: Iterable[Batch | CanaryImages]) -> Named:
    """Return one patient's summed gradient, by name; parameters that no image teaches are left out.

    `batches` hold that patient's images only, in as many parts as memory asks for.
    """
    learning = step.learning
    total: Named = {}
    for batch in batches:
        loss = step.loss(batch)
        if not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
        for name, value in zip(learning, found, strict=True):
            if value is not None:
                total[name] = total[name] + value if name in total else value
    return total


def add_clipped(total: Named, gradient: Named, clip_norm: float) -> None:
    """Add a patient's gradient to float64 sums, scaled to L2 norm at most `clip_norm`; one not finite adds nothing."""
    norms = [torch.linalg.vector_norm(value, dtype=torch.float64) for value in gradient.values()]
    norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    if math.isfinite(norm):
        for name, value in gradient.items():
            total[name].add_(value.double(), alpha=clip_norm / max(norm, clip_norm))


def step_sum(step: PrivateStep, patients: Iterable[Iterable[Batch | CanaryImages]], clip_norm: float) -> Named:
    """Return the sum of the patients' clipped gradients in float64; zeros without any."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in step.learning.items()}
    for batches in patients:
        add_clipped(total, patient_gradient(step, batches), clip_norm)
    return total


def noised(
    total: Named, normals: Callable[[int], Tensor], *, noise_multiplier: float, clip_norm: float, divisor: float
) -> Named:
    """Add Gaussian noise of standard deviation sigma C to every coordinate once, and divide by the constant q N."""
    count = sum(value.numel() for value in total.values())
    noise = normals(count) * (noise_multiplier * clip_norm)
    result: Named = {}
    start = 0
    for name, value in total.items():
        part = noise[start : start + value.numel()].view(value.shape).to(value.device)
        result[name] = (value + part) / divisor
        start += value.numel()
    return result


def check_independence(step: PrivateStep, *, image_size: int) -> None:
    """Refuse a network in which one patient's images move what it makes of another's, or that keeps statistics.

    Two patients of noise go through student and teacher together, then one of them is exchanged: encoder, classes,
    saliency and masks of the other must stay.

    Raises:
        Refused: `network_mixes_patients`.
    """
    for network in (step.student, step.teacher):
        if list(network.buffers()) or _normalises_batches(network):
            raise Refused("network_mixes_patients", "a network that normalises over a batch or keeps statistics")
        before, after = (_of_the_second(network, image_size, seed) for seed in (1, 2))
        for known, now in zip(before, after, strict=True):
            scale = float(known.abs().max()) + 1e-12
            if not float((now - known).abs().max()) <= _TOLERANCE * scale:
                raise Refused("network_mixes_patients", "one patient moves what becomes of another")


def _normalises_batches(network: nn.Module) -> bool:
    kind = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  (the base that all of them have in common)
    return any(isinstance(module, kind) for module in network.modules())


def _of_the_second(network: MultiMixNetwork, image_size: int, first_seed: int) -> list[Tensor]:
    """Return all that the network makes of the second of two noise images, the first drawn from the seed."""
    like = next(network.parameters())
    generators = [torch.Generator().manual_seed(seed) for seed in (first_seed, 3)]
    drawn = [torch.rand(1, 1, image_size, image_size, generator=generator) for generator in generators]
    images = torch.cat(drawn).to(like.device, like.dtype)
    seen = view(network, images)
    made = [*seen.levels, *(x for x in (seen.class_logits, seen.bridge) if x is not None)]
    if network.config.segmentation:
        with torch.no_grad():
            made.append(network.decode(seen.levels, seen.bridge))
    return [value[1] for value in made]
