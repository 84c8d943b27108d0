"""Clipped per-patient gradients (Abadi et al. 2016, arXiv 1607.00133), the patient as the unit.

A patient's gradient is the sum over all the patient's images, both views and both tasks; it is clipped once to
L2 norm C. Gradients are taken per image by `torch.func.vmap(grad)`, in chunks of whole patients so that memory stays
bounded, summed per patient, clipped and added up in float64. `one_patient_at_a_time` is the oracle of the tests.

Guarantee: adding or removing one patient changes the sum by at most C, because every image's loss depends on that
image and the weights alone; `check_independence` refuses networks in which it does not.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from multimix.config import ObjectiveConfig
from multimix.errors import Refused
from multimix.examples import ONE_EACH, Examples, ImageLoss, Row, examples, loss_at, weights_of
from multimix.network import Dropout, MultiMixNetwork
from multimix.objective import Batch, targets

CHUNK_IMAGES = 8  # whose gradients are held at once
Named = dict[str, Tensor]
_TOLERANCE = 1e-4  # of the guard, relative: batched kernels may round differently, another patient's images never


@dataclass(frozen=True)
class PrivateStep:
    """What the loss of a step needs besides the batch."""

    student: MultiMixNetwork
    teacher: MultiMixNetwork
    objective: ObjectiveConfig
    trainable: tuple[str, ...]  # names of the parameters that learn
    ramp: float = 1.0

    def parameters(self) -> Named:
        """Return the trainable parameters, detached."""
        named = dict(self.student.named_parameters())
        return {name: named[name].detach() for name in self.trainable}

    def examples(self, batch: Batch) -> tuple[Examples, Examples]:
        """Return the rows of a batch; task weights are constants, never divided by realised counts."""
        target = targets(self.student, self.teacher, batch, self.objective)
        weights = weights_of(self.objective, ONE_EACH, self.ramp)
        dropout = Dropout(batch.dropout_seeds, self.objective.dropout, self.objective.dropout_kind)
        return examples(self.student.config, batch, target, self.objective, weights, dropout=dropout)

    def image_gradients(self, rows: Row) -> Named:
        """Return the gradient of each row, by name [rows, ...]."""
        module = ImageLoss(self.student, self.objective)

        def loss(parameters: Mapping[str, Tensor], row: Row) -> Tensor:
            return loss_at(module, parameters, row)

        with torch.no_grad():  # of the frozen parameters; `grad` takes its own all the same
            gradients: Named = vmap(grad(loss), in_dims=(None, 0))(self.parameters(), rows)
        return gradients


def patient_gradients(step: PrivateStep, batch: Batch, patient: Tensor, *, chunk_images: int = CHUNK_IMAGES) -> Named:
    """Return each patient's summed gradient, by name [patients, ...]; `patient` numbers the batch's images from 0."""
    count = int(patient.max()) + 1 if len(patient) else 0
    total = {name: value.new_zeros((count, *value.shape)) for name, value in step.parameters().items()}
    for part in step.examples(batch):
        for start in range(0, len(part), chunk_images):
            chunk = part.at(torch.arange(start, min(start + chunk_images, len(part)), device=patient.device))
            for name, gradient in step.image_gradients(chunk.rows).items():
                total[name].index_add_(0, patient[chunk.source], gradient)
    return total


def clipped_sum(gradients: Named, clip_norm: float) -> Named:
    """Scale each patient's gradient [patients, ...] to L2 norm at most `clip_norm` and add them up, in float64.

    A patient whose gradient is not finite contributes zero.
    """
    flat = [gradient.flatten(1) for gradient in gradients.values()]
    squares = torch.stack([part.double().square().sum(1) for part in flat]).sum(0)
    finite = squares.isfinite()
    factor = torch.where(finite, clip_norm / squares.sqrt().clamp(min=clip_norm), torch.zeros_like(squares))
    result: Named = {}
    for name, gradient in gradients.items():
        known = gradient.double()
        if not finite.all():
            known = torch.where(finite.view(-1, *[1] * (known.dim() - 1)), known, torch.zeros_like(known))
        result[name] = torch.einsum("p,p...->...", factor, known)
    return result


def step_sum(
    step: PrivateStep, chunks: Iterable[tuple[Batch, Tensor]], clip_norm: float, *, chunk_images: int = CHUNK_IMAGES
) -> Named:
    """Return the sum of clipped patient gradients over chunks of whole patients, in float64; zeros without any."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in step.parameters().items()}
    for batch, patient in chunks:
        for name, value in clipped_sum(
            patient_gradients(step, batch, patient, chunk_images=chunk_images), clip_norm
        ).items():
            total[name] += value
    return total


def one_patient_at_a_time(step: PrivateStep, batches: Iterable[Batch], clip_norm: float) -> Named:
    """Return the same sum by one ordinary backward pass for each patient: slow, plain, and what the rest must equal."""
    from multimix.training import step_gradients  # noqa: PLC0415  (the ordinary step; only the oracle needs it)

    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in step.parameters().items()}
    for batch in batches:
        step.student.zero_grad(set_to_none=True)
        dropout = Dropout(batch.dropout_seeds, step.objective.dropout, step.objective.dropout_kind)
        step_gradients(step.student, step.teacher, batch, ONE_EACH, step.objective, ramp=step.ramp, dropout=dropout)
        named = dict(step.student.named_parameters())
        mine = {name: named[name].grad for name in step.trainable}
        own = {name: value.double() for name, value in mine.items() if value is not None}
        norm = float(
            torch.sqrt(sum((value.square().sum() for value in own.values()), torch.zeros((), dtype=torch.float64)))
        )
        for name, value in own.items():
            total[name] += value * min(1.0, clip_norm / max(norm, 1e-300))
    step.student.zero_grad(set_to_none=True)
    return total


def check_independence(step: PrivateStep, *, image_size: int) -> None:
    """Refuse a network in which one patient's images move another patient's gradient, or that keeps statistics.

    Tried on noise images, on the very path that training takes: teacher, saliency and gradient.

    Raises:
        Refused: `network_mixes_patients`.
    """
    networks: tuple[nn.Module, ...] = (step.student, step.teacher)
    if any(list(network.buffers()) for network in networks) or any(_keeps_statistics(n) for n in networks):
        raise Refused("network_mixes_patients", "a network that keeps running statistics")
    before, after = (_second_patient(step, image_size, seed) for seed in (1, 2))
    for name, value in before.items():
        scale = float(value.abs().max()) + 1e-12
        if not float((after[name] - value).abs().max()) <= _TOLERANCE * scale:
            raise Refused("network_mixes_patients", "one patient moves the gradient of another")


def _keeps_statistics(network: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.batchnorm._LazyNormBase)  # noqa: SLF001  (the common base)
    return any(isinstance(module, kinds) for module in network.modules())


def _second_patient(step: PrivateStep, image_size: int, first_seed: int) -> Named:
    """Return the gradient of the second of two patients, in the presence of a first one drawn from the seed."""
    batch = _noise_batch(step, image_size, first_seed)
    patient = torch.tensor([0, 1] * 4, device=batch.weak.device)
    return {name: value[1] for name, value in patient_gradients(step, batch, patient, chunk_images=8).items()}


def _noise_batch(step: PrivateStep, image_size: int, first_seed: int) -> Batch:
    """Return a batch in which each of two patients has an image in every role; only the first one's are drawn anew."""
    like = next(step.student.parameters())
    generators = [torch.Generator().manual_seed(seed) for seed in (first_seed, 3)]

    def two(times: int = 1) -> Tensor:
        pairs = [torch.rand(1, 1, image_size, image_size, generator=g) for _ in range(times) for g in generators]
        return torch.cat(pairs).to(like.device, like.dtype)

    yes = torch.ones(4, dtype=torch.bool, device=like.device)
    return Batch(
        labelled=two(),
        labels=torch.tensor([0, 1], device=like.device),
        masked=two(),
        masks=(two() > 0.5).to(like.dtype),  # noqa: PLR2004  (half of the pixels)
        weak=two(2),
        strong=two(2),
        teaches_classifier=yes,
        teaches_decoder=yes,
        log_prior=torch.zeros(2, device=like.device, dtype=like.dtype),
        dropout_seeds=(1, 2) * 4,
    )


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
