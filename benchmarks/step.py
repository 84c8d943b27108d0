"""The cost of one MultiMix step against the released formulation, on the same objective and weights.

Released formulation: every group goes through encoder, classifier and decoder, and saliency comes from a pass of its
own that also computes all parameter gradients, as `generate_saliency` in the released code does. The
objective is ours (the released one's segmentation consistency is identically zero), so the gradients must be equal.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from multimix.batches import slots
from multimix.config import MethodConfig, preset
from multimix.network import MultiMixNetwork, new_network
from multimix.objective import Batch, Losses, Slots, _pseudo, bernoulli_divergence, dice_loss
from multimix.training import step_gradients

RELEASED_GFLOP_5X10_256PX = 1364.7  # 50 images x (6 encoder passes + 3 decoder passes), of the prototype


@dataclass(frozen=True)
class Case:
    """One step: the method, its network and a batch of five groups of n views."""

    method: MethodConfig
    network: MultiMixNetwork
    batch: Batch
    planned: Slots


def case(*, image_size: int, images_per_group: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
    """Make a step of 5 x n views: n labelled, n masked, n weak and n strong for the class, n for the mask."""
    method = preset("paper", image_size=image_size)
    network = new_network(method.network, seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    n, pairs = images_per_group, max(1, images_per_group // 2)

    def images(count: int) -> Tensor:
        return torch.rand(count, 1, image_size, image_size, generator=generator, dtype=dtype)

    teaches_decoder = torch.arange(n + pairs) >= n
    batch = Batch(
        labelled=images(n),
        labels=torch.randint(0, 2, (n,), generator=generator),
        masked=images(n),
        masks=(images(n) > 0.5).to(dtype),
        weak=images(n + pairs),
        strong=images(n + pairs),
        log_prior=torch.zeros(2, dtype=dtype),
        teaches_classifier=~teaches_decoder,
        teaches_decoder=teaches_decoder,
        dropout_seeds=(),
    )
    # A threshold of 0 makes every pseudo-label count, so no term of the comparison is empty.
    objective = method.objective.model_copy(update={"confidence_threshold": 0.0})
    return Case(method.model_copy(update={"objective": objective}), network, batch, slots(method, n))


def released_step(case: Case) -> None:
    """Accumulate the gradients of the step in the released formulation."""
    network, batch, objective = case.network, case.batch, case.method.objective
    class_only, both = batch.teaches_classifier, batch.teaches_decoder
    groups = {
        "labelled": batch.labelled,
        "weak": batch.weak[class_only],
        "strong": batch.strong[class_only],
        "masked": batch.masked,
        "weak mask": batch.weak[both],
        "strong mask": batch.strong[both],
    }
    outputs = {name: _released_forward(network, images) for name, images in groups.items()}
    pseudo_labels, confident = _pseudo(outputs["weak"][0].detach(), objective)
    terms = Losses(
        classification=functional.cross_entropy(outputs["labelled"][0], batch.labels, reduction="none"),
        unlabelled_classification=confident
        * functional.cross_entropy(outputs["strong"][0], pseudo_labels, reduction="none"),
        segmentation=dice_loss(outputs["masked"][1], batch.masks),
        unlabelled_segmentation=bernoulli_divergence(
            outputs["weak mask"][1].detach().sigmoid(), outputs["strong mask"][1]
        ),
    )
    total = terms.total(case.planned, objective)
    # The released loss touches every group's outputs, so backward walks through all of them.
    untouched = (outputs["labelled"][1], outputs["weak"][0], outputs["weak"][1], outputs["strong"][1])
    unused = (outputs["masked"][0], outputs["weak mask"][0], outputs["weak mask"][1], outputs["strong mask"][0])
    (total + sum(0.0 * output.sum() for output in untouched + unused)).backward()


def _released_forward(network: MultiMixNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Saliency by a full backward pass with parameter gradients, thrown away; then the whole network."""
    pixels = images.detach().requires_grad_()
    scores = network.classify(network.encode(pixels)).max(dim=1).values
    scores.sum().backward()
    network.zero_grad()  # as the released code does inside its forward pass
    saliency = torch.zeros_like(images) if pixels.grad is None else pixels.grad.abs()
    bridge = functional.avg_pool2d(torch.cat([images, saliency], dim=1), 8)
    levels = network.encode(images)
    return network.classify(levels), network.decode(levels, bridge)


def our_step(case: Case) -> None:
    """Accumulate the gradients of the step as training does."""
    step_gradients(case.network, case.network, case.batch, case.planned, case.method.objective)


class _FlopCount(TorchDispatchMode):
    """PyTorch's own FLOP formulas, without FlopCounterMode's module hooks, which break on `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)  # noqa: SLF001
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _count_flops(step: Callable[[Case], None], of: Case) -> int:
    of.network.zero_grad()
    with _FlopCount() as count:
        step(of)
    return count.total


def flop_figures() -> dict[str, float]:
    """Count a 5 x 10 step at 256 px both ways."""
    of = case(image_size=256, images_per_group=10)
    released, ours = _count_flops(released_step, of), _count_flops(our_step, of)
    return {
        "step_released_gflop": released / 1e9,
        "step_gflop": ours / 1e9,
        "step_flop_ratio": released / ours,
    }


def gradient_difference() -> float:
    """Return the largest difference between both gradients, relative to the largest gradient, in float64."""
    of = case(image_size=64, images_per_group=4, dtype=torch.float64)
    gradients = []
    for step in (released_step, our_step):
        of.network.zero_grad()
        step(of)
        gradients.append(torch.cat([p.grad.flatten() for p in of.network.parameters() if p.grad is not None]))
    return float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())


def cpu_ratio(*, image_size: int, images_per_group: int, pairs: int = 7) -> float:
    """Return released over ours in CPU time: minima of interleaved pairs, on one thread."""
    torch.set_num_threads(1)
    of = case(image_size=image_size, images_per_group=images_per_group)
    times: dict[Callable[[Case], None], list[float]] = {released_step: [], our_step: []}
    our_step(of)
    for _ in range(pairs):
        for step, taken in times.items():
            of.network.zero_grad()
            started = time.process_time()
            step(of)
            taken.append(time.process_time() - started)
    return min(times[released_step]) / min(times[our_step])


def figures() -> dict[str, float]:
    """Return all figures of the step."""
    return {
        **flop_figures(),
        "step_gradient_difference": gradient_difference(),
        "step_cpu_ratio_128px": cpu_ratio(image_size=128, images_per_group=4),
        "step_cpu_ratio_256px": cpu_ratio(image_size=256, images_per_group=2),
    }


if __name__ == "__main__":
    for key, value in figures().items():
        print(f"{key:28} {value:.6g}")
