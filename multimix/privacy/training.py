"""One private round at a site: Poisson-sampled patients, clipped per patient, noised once a step.

As `multimix.training`, but that the images of a step are those of sampled patients, the gradient is that of
`multimix.privacy.dp_sgd`, and all randomness that protects patients comes from a secret of this reservation. Views and
dropout are keyed by a part of the secret too: seeds that are independent of the data, one for each patient.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from multimix.batches import TrainingData, make_batch, roles_of
from multimix.config import MethodConfig
from multimix.contract.messages import LocalWork, Weights, private_arrays
from multimix.contract.privacy import PatientPrivacy
from multimix.data.sampling import Pools
from multimix.errors import Refused
from multimix.network import MultiMixNetwork
from multimix.objective import Batch
from multimix.privacy.canaries import AUDIT_HEAD, Canaries, CanaryImages, add_head
from multimix.privacy.dp_sgd import Named, PrivateStep, check_independence, noised, step_sum
from multimix.privacy.noise import SecretStream
from multimix.training import add_proximal_gradient, average_into, learning_rate, unlabelled_ramp
from multimix.weights import export

CHUNK_IMAGES = 8  # of one patient, computed at once: bounds memory


@dataclass(frozen=True)
class Population:
    """The patients that a step samples from: every patient of the training split, labelled or not."""

    rows: np.ndarray  # of the store, ascending
    patient: np.ndarray  # index of each row's patient, from 0
    count: int

    @staticmethod
    def of(data: TrainingData) -> "Population":
        """Collect everyone whose images may teach something, in any pool."""
        pools = data.pools
        rows = np.unique(
            np.concatenate(
                [
                    pools.labelled_classification,
                    pools.unlabelled_classification,
                    pools.labelled_segmentation,
                    pools.unlabelled_segmentation,
                ]
            )
        )
        patients, index = np.unique(data.store.patient[rows], return_inverse=True)
        return Population(rows, index, len(patients))

    def sample(self, stream: SecretStream, step: int, *, rate: float, images_per_patient: int) -> list[np.ndarray]:
        """Return the rows of each sampled patient, at most `images_per_patient` of them by lot."""
        chosen = stream.sampled(step, self.count, rate)
        lots = stream.uniforms("images", step, len(self.rows))
        order = np.lexsort((lots, self.patient))
        order = order[chosen[self.patient[order]]]
        groups = np.split(order, np.flatnonzero(np.diff(self.patient[order])) + 1) if len(order) else []
        return [np.sort(self.rows[group[:images_per_patient]]) for group in groups]


def taught_pools(pools: Pools, modules: tuple[str, ...]) -> Pools:
    """Return the pools without the tasks whose module does not learn."""
    if "classifier" not in modules:
        none = pools.labelled_classification[:0]
        pools = replace(pools, labelled_classification=none, unlabelled_classification=none)
    if "decoder" not in modules:
        none = pools.labelled_segmentation[:0]
        pools = replace(pools, labelled_segmentation=none, unlabelled_segmentation=none)
    return pools


def train_privately(
    network: MultiMixNetwork,
    data: TrainingData,
    method: MethodConfig,
    work: LocalWork,
    dp: PatientPrivacy,
    *,
    secret: bytes,
    progress: Callable[[int], None] | None = None,
    canaries: Canaries | None = None,
    watch: Callable[[int, Named], None] | None = None,
) -> Weights:
    """Train for `work.steps` steps; return the arrays that learnt, differentially private for every patient.

    `work.images_per_group` has no meaning here: a step holds whom the sampling draws, nobody included. An audit plants
    canaries in the data and watches each step's noised gradient, which never leaves a site. `progress` is told how many
    steps are done, after each; what it raises ends the training there.

    Raises:
        Refused: `network_mixes_patients`; `nothing_taught` if no parameter learns.
    """
    data = replace(data, pools=taught_pools(data.pools, dp.modules))
    learning = tuple(sorted(private_arrays(export(network), dp)))
    if not learning:
        raise Refused("nothing_taught")
    if canaries is not None:
        add_head(network, len(canaries.included))
        learning = (*learning, AUDIT_HEAD)
    objective, optimiser_config = method.objective, method.optimiser
    teacher = network if objective.teacher == "student" else copy.deepcopy(network)
    plain = PrivateStep(network, teacher, objective, learning)
    check_independence(plain, image_size=method.network.image_size)
    parameters = [network.get_parameter(name) for name in learning]
    anchors = [parameter.detach().clone() for parameter in parameters]
    optimiser = torch.optim.AdamW(parameters, weight_decay=optimiser_config.weight_decay)
    draws = _Draws(data, method, dp, Population.of(data), SecretStream(secret), canaries)
    for index in range(work.steps):
        step = work.first_step + index
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(optimiser_config, step, work.total_steps)
        now = replace(plain, ramp=unlabelled_ramp(objective, step, work.total_steps))
        gradient = draws.gradient(now, index, step)
        if watch:
            watch(index, gradient)
        for name, parameter in zip(learning, parameters, strict=True):
            parameter.grad = gradient[name].to(parameter.dtype)
        if work.proximal_mu:
            add_proximal_gradient(parameters, anchors, work.proximal_mu)
        optimiser.step()
        if objective.teacher == "ema":
            average_into(teacher, network, objective.ema_decay)
        if progress:
            progress(index + 1)
    sent = {name: value for name, value in export(network).items() if name != AUDIT_HEAD}
    return private_arrays(sent, dp)


@dataclass(frozen=True)
class _Draws:
    """All that a reservation's secret decides: who is in a step, how they are seen, and the noise."""

    data: TrainingData
    method: MethodConfig
    dp: PatientPrivacy
    population: Population
    stream: SecretStream
    canaries: Canaries | None = None

    def gradient(self, step: PrivateStep, index: int, number: int) -> Named:
        """Return the noised gradient of the reservation's step `index`, the run's step `number`."""
        dp = self.dp
        device = next(step.student.parameters()).device
        rate, images = dp.sampling_rate, dp.images_per_patient
        drawn = self.population.sample(self.stream, index, rate=rate, images_per_patient=images)
        patients = (self.images(rows, number, device) for rows in drawn)
        return noised(
            step_sum(step, patients, dp.clip_norm),
            lambda count: torch.from_numpy(self.stream.normals("noise", index, count)),
            noise_multiplier=dp.noise_multiplier,
            clip_norm=dp.clip_norm,
            divisor=dp.sampling_rate * dp.declared_patients,
        )

    def images(self, rows: np.ndarray, step: int, device: torch.device) -> Iterator[Batch | CanaryImages]:
        """Yield one patient's images alone, loaded and augmented when asked for, a few at a time."""
        seed = self.stream.text_seed()
        for start in range(0, len(rows), CHUNK_IMAGES):
            part = rows[start : start + CHUNK_IMAGES]
            canary = self.canaries.of(part) if self.canaries else None
            if canary is not None:
                yield canary
                continue
            roles = roles_of(part, self.data.pools, self.method)
            yield make_batch(self.data, roles, self.method, seed=seed, step=step, device=device)
