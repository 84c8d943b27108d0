"""What each way to train faster on a GPU gives there: milliseconds of a step, and trainings packed on one GPU.

Also what it changes: how far the gradient of a step is from the exact one's, as a share of its length.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context

import torch

from benchmarks.step import Case, case
from multimix.acceleration import EXACT, Acceleration
from multimix.augment import apply, strong_recipe
from multimix.network import copy_of, new_network
from multimix.objective import Batch
from multimix.training import resolve_device, step_gradients

CHOICES = {
    "exact": EXACT,
    "bfloat16": Acceleration(precision="bfloat16"),
    "channels_last": Acceleration(channels_last=True),
    "compiled": Acceleration(compiled=True),
    "all": Acceleration(precision="bfloat16", channels_last=True, compiled=True),
}
PACKED = (2, 4)
_WARM, _STEPS = 3, 10


def figures(*, device: str = "cuda", image_size: int = 256, images_per_group: int = 10) -> dict[str, float]:
    """Measure on a device; InputError `device_missing` where there is none."""
    resolve_device(device)
    of = case(image_size=image_size, images_per_group=images_per_group)
    found, exact = dict[str, float](), torch.empty(0)
    for name, acceleration in CHOICES.items():
        step = _step(of, acceleration, device)
        gradient = step()
        exact = gradient if name == "exact" else exact
        found[f"gpu_step_ms_{name}"] = 1000 * _seconds(step, device)
        found[f"gpu_gradient_error_{name}"] = float((gradient - exact).norm() / exact.norm())
    found |= {f"gpu_augmentation_ms_on_{where}": 1000 * _augmentation_s(of, where) for where in ("cpu", device)}
    alone = _packed_steps_per_s(1, device, image_size, images_per_group)
    for count in PACKED:
        found[f"gpu_packed_{count}_speedup"] = _packed_steps_per_s(count, device, image_size, images_per_group) / alone
    return found


def _step(of: Case, acceleration: Acceleration, device: str) -> Callable[[], torch.Tensor]:
    """Return a function that does the step on a device and returns its gradient."""
    network = new_network(of.method.network, 0).to(device)
    network.accelerate(acceleration)
    teacher, batch = copy_of(network), _batch_on(device, of.batch)

    def step() -> torch.Tensor:
        network.zero_grad(set_to_none=True)
        step_gradients(network, teacher, batch, of.planned, of.method.objective)
        return torch.cat([each.grad.flatten() for each in network.parameters() if each.grad is not None]).cpu()

    return step


def _batch_on(device: str, batch: Batch) -> Batch:
    """Return a batch with its tensors on a device."""
    values = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return replace(
        batch, **{name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}
    )


def _seconds(step: Callable[[], object], device: str) -> float:
    """Return the median time of a step."""
    for _ in range(_WARM):
        step()
    times = []
    for _ in range(_STEPS):
        _settle(device)
        started = time.perf_counter()
        step()
        _settle(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _augmentation_s(of: Case, device: str) -> float:
    """Return the median time of strong views of a step's images, from the CPU's memory to the device's."""
    images, recipes = (
        of.batch.strong.cpu(),
        [strong_recipe(of.method.views, n, geometric=True) for n in range(len(of.batch.strong))],
    )
    return _seconds(lambda: apply(images.to(device), recipes), device)


def _packed_steps_per_s(count: int, device: str, image_size: int, images_per_group: int) -> float:
    """Return the steps a second of `count` processes that share the device."""
    arguments = [(device, image_size, images_per_group)] * count
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(_steps_per_s, *zip(*arguments, strict=True)))


def _steps_per_s(device: str, image_size: int, images_per_group: int) -> float:
    step = _step(case(image_size=image_size, images_per_group=images_per_group), EXACT, device)
    return 1.0 / _seconds(step, device)


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
