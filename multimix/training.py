"""Local training: one round at one site, as a function of the weights received.

No state survives a round. The optimiser is fresh, the teacher is the incoming model or an average begun from it,
and schedules are functions of the step's number in the whole run, so a resumed run repeats the uninterrupted one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from multimix.batches import Drawn, TrainingData, draw_rows, make_batch, slots
from multimix.config import MethodConfig, ObjectiveConfig, OptimiserConfig
from multimix.contract.messages import MODULES, LocalWork, Teachers
from multimix.errors import InputError
from multimix.network import Dropout, MultiMixNetwork, copy_of
from multimix.objective import Batch, Slots, losses, targets

_FINAL_LEARNING_RATE = 0.05  # of the cosine schedule, as a share of the first


@dataclass
class Training:
    """What a round of training did; filled while it runs."""

    losses: dict[str, float] = field(default_factory=dict)  # means over the steps, by term
    teachers: dict[str, Teachers] = field(default_factory=dict)
    pseudo_label_rate: float | None = None
    step_s: float = 0.0
    data_s: float = 0.0


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; InputError `device_missing` when CUDA is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device_missing",
            "device = cuda, but torch sees no GPU here: use auto or cpu, or install a CUDA build of torch.",
        )
    return torch.device(name)


def learning_rate(optimiser: OptimiserConfig, step: int, total_steps: int) -> float:
    """Return the learning rate at a step of the whole run."""
    if optimiser.schedule == "constant":
        return optimiser.learning_rate
    phase = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / total_steps)))
    return optimiser.learning_rate * (_FINAL_LEARNING_RATE + (1.0 - _FINAL_LEARNING_RATE) * phase)


def unlabelled_ramp(objective: ObjectiveConfig, step: int, total_steps: int) -> float:
    """Return the factor in [0, 1] on the unlabelled weights at a step of the whole run (sigmoid ramp)."""
    length = objective.ramp_fraction * total_steps
    if step >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - step / length) ** 2)


def step_gradients(
    student: MultiMixNetwork,
    teacher: MultiMixNetwork,
    batch: Batch,
    planned: Slots,
    objective: ObjectiveConfig,
    *,
    ramp: float = 1.0,
    dropout: Dropout | None = None,
) -> dict[str, float]:
    """Add the gradient of one step's loss to the student's parameters; return the mean of each term."""
    target = targets(student, teacher, batch, objective)
    term = losses(student, batch, target, objective, dropout)
    total = term.total(planned, objective, ramp)
    if total.requires_grad:
        torch.autograd.backward(total)
    confident = target.confident[batch.teaches_classifier]
    values = {
        "classification": term.classification,
        "unlabelled_classification": term.unlabelled_classification,
        "segmentation": term.segmentation,
        "unlabelled_segmentation": term.unlabelled_segmentation,
        "pseudo_label_rate": confident,
    }
    summary = {name: float(value.detach().mean()) for name, value in values.items() if value.numel()}
    return {**summary, "total": float(total.detach())}


def add_proximal_gradient(parameters: list[torch.nn.Parameter], anchors: list[Tensor], mu: float) -> None:
    """Add the gradient of mu/2 ||w - w_round||^2 (FedProx; Li et al. 2020, arXiv 1812.06127), once a step."""
    with torch.no_grad():
        for parameter, anchor in zip(parameters, anchors, strict=True):
            pull = mu * (parameter - anchor)
            parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)


def train(
    network: MultiMixNetwork,
    data: TrainingData,
    method: MethodConfig,
    work: LocalWork,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Training:
    """Train the network in place for `work.steps` steps and return what was done.

    `progress` is told how many steps are done, after each; what it raises ends the training there.
    """
    device = next(network.parameters()).device
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    anchors = [parameter.detach().clone() for parameter in parameters]
    teacher = network if method.objective.teacher == "student" else copy_of(network)
    optimiser = torch.optim.AdamW(parameters, weight_decay=method.optimiser.weight_decay)
    planned = slots(method, work.images_per_group)
    outcome, sums, counts = Training(), dict[str, float](), dict[str, int]()
    seen: list[Drawn] = []
    for step in range(work.first_step, work.first_step + work.steps):
        started = time.perf_counter()
        drawn = draw_rows(data, method, seed=seed, step=step, images_per_group=work.images_per_group)
        batch = make_batch(data, drawn, method, seed=seed, step=step, device=device)
        seen.append(drawn)
        outcome.data_s += time.perf_counter() - started
        started = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(method.optimiser, step, work.total_steps)
        optimiser.zero_grad(set_to_none=True)
        terms = step_gradients(
            network,
            teacher,
            batch,
            planned,
            method.objective,
            ramp=unlabelled_ramp(method.objective, step, work.total_steps),
            dropout=Dropout(batch.dropout_seeds, method.objective.dropout, method.objective.dropout_kind),
        )
        if work.proximal_mu:
            add_proximal_gradient(parameters, anchors, work.proximal_mu)
        optimiser.step()
        if method.objective.teacher == "ema":
            average_into(teacher, network, method.objective.ema_decay)
        outcome.step_s += time.perf_counter() - started
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value
            counts[name] = counts.get(name, 0) + 1
        if progress:
            progress(step - work.first_step + 1)
    outcome.losses = {name: sums[name] / counts[name] for name in sorted(sums)}
    outcome.pseudo_label_rate = outcome.losses.pop("pseudo_label_rate", None)
    outcome.teachers = _teachers(data, seen)
    return outcome


def average_into(teacher: MultiMixNetwork, student: MultiMixNetwork, decay: float) -> None:
    """Move the teacher towards the student (mean teacher; Tarvainen and Valpola 2017, arXiv 1703.01780)."""
    with torch.no_grad():
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 1.0 - decay)


def _teachers(data: TrainingData, seen: list[Drawn]) -> dict[str, Teachers]:
    """Count the distinct patients that taught each module this round, by label or mask, or else by consistency."""

    def patients(rows: list[np.ndarray]) -> set[int]:
        return set(data.store.patient[np.concatenate(rows)].tolist()) if rows else set()

    by_label = patients([drawn.labelled for drawn in seen])
    by_mask = patients([drawn.masked for drawn in seen])
    class_only = patients([drawn.unlabelled[drawn.teaches_classifier] for drawn in seen])
    mask_only = patients([drawn.unlabelled[drawn.teaches_decoder] for drawn in seen])
    counted = {
        "encoder": (by_label | by_mask, class_only | mask_only),
        "classifier": (by_label, class_only),
        "decoder": (by_mask, mask_only),
    }
    return {
        module: Teachers(labelled=len(counted[module][0]), unlabelled=len(counted[module][1] - counted[module][0]))
        for module in MODULES
    }
