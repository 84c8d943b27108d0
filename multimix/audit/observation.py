"""What the auditor sees: the audit head of every noised gradient of a run with planted canaries.

And of some steps with nobody in them every parameter: noise that the released parameters get, and nothing else.
The auditor runs training with a secret of the audit's own (never one that protected patients) and with canaries put in
by fair coins. Nothing of the run leaves the site. Whatever the trainer under test does, it is observed where a released
gradient would be: after clipping, noise and division.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from multimix.batches import TrainingData
from multimix.config import MethodConfig
from multimix.contract.messages import LocalWork, Weights
from multimix.contract.privacy import PatientPrivacy
from multimix.data.sampling import Pools
from multimix.errors import Refused
from multimix.network import MultiMixNetwork
from multimix.privacy.canaries import AUDIT_HEAD, Canaries, plant
from multimix.privacy.dp_sgd import Named
from multimix.privacy.noise import SecretStream
from multimix.privacy.training import Population, taught_pools

FEWEST_CANARIES: Final = 64
MOST_STEPS_OF_NOBODY: Final = 4  # all parameters of each are held, and every two compared

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


class Trainer(Protocol):
    """Private training, as `multimix.privacy.training.train_privately`."""

    def __call__(
        self,
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
        """Train; the audit reads what `watch` is shown."""
        ...


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited: a trainer on a site's data, told what one run told it."""

    train: Trainer
    network: Callable[[], MultiMixNetwork]  # the weights that the run began with, afresh each time
    data: TrainingData
    method: MethodConfig
    dp: PatientPrivacy
    steps: int  # of the whole run

    def work(self, *, first_step: int = 0, steps: int | None = None) -> LocalWork:
        """Return the work of the whole run, or of some steps of it."""
        return LocalWork(
            steps=self.steps if steps is None else steps,
            images_per_group=1,  # without meaning in private training
            first_step=first_step,
            total_steps=self.steps,
        )

    def unit(self, dp: PatientPrivacy) -> float:
        """Return what a released gradient is multiplied with to be a sum in units of the clip norm."""
        return dp.sampling_rate * dp.declared_patients / dp.clip_norm


@dataclass(frozen=True, eq=False)
class Observation:
    """Audit head of every step's noised gradient, as a sum over patients in units of the clip norm.

    Of a correct trainer coordinate j of step t is Gaussian noise of standard deviation sigma, plus 1 where canary j
    was in the step.
    """

    values: Array  # float64 [steps, canaries]
    included: Bools  # [canaries]
    sampled: Bools  # [steps, canaries]: in the step, as the secret says; never where not included
    noise_multiplier: float
    sampling_rate: float

    @property
    def scores(self) -> Array:
        """How much each canary looks as if it had been in: its sum over the steps [canaries]."""
        scores: Array = self.values.sum(axis=0)
        return scores


def observe(
    subject: Subject, *, canaries: int, seed: int, progress: Callable[[int], None] | None = None
) -> Observation:
    """Plant canaries, train for a whole run, and return what was seen.

    Raises:
        Refused: `audit_parameters` for fewer than 64 canaries; `audit_not_watched` where the trainer did not show
            every step; as the trainer.
    """
    if canaries < FEWEST_CANARIES:
        raise Refused("audit_parameters", f"{canaries} canaries, at least {FEWEST_CANARIES}")
    dp, secret, seen = subject.dp, audit_secret(seed), dict[int, Array]()
    included = np.random.default_rng([seed, 1]).random(canaries) < 0.5  # noqa: PLR2004  (a fair coin each)
    planted, chosen = plant(subject.data, included, images=dp.images_per_patient, clip_norm=dp.clip_norm)

    def watch(index: int, gradient: Named) -> None:
        if AUDIT_HEAD not in gradient:
            raise Refused("audit_not_watched", "no audit head")
        seen[index] = gradient[AUDIT_HEAD].detach().cpu().double().numpy().copy()

    subject.train(
        subject.network(),
        planted,
        subject.method,
        subject.work(),
        dp,
        secret=secret,
        progress=progress,
        canaries=chosen,
        watch=watch,
    )
    if sorted(seen) != list(range(subject.steps)) or any(len(each) != canaries for each in seen.values()):
        raise Refused("audit_not_watched")
    return Observation(
        values=np.stack([seen[index] for index in range(subject.steps)]) * subject.unit(dp),
        included=included,
        sampled=_sampled(planted, chosen, dp, secret, subject.steps),
        noise_multiplier=dp.noise_multiplier,
        sampling_rate=dp.sampling_rate,
    )


def observe_nobody(subject: Subject, *, canaries: int, seed: int) -> dict[str, Array]:
    """Train the run's first steps, four at most, with nobody in them; return what is noise and nothing else.

    Returns:
        Noised sum by parameter, the audit head of as many canaries among them, float64 [steps, ...], in units of the
        clip norm.

    Raises:
        Refused: `audit_not_watched` where the trainer did not show every step whole; as the trainer.
    """
    steps, seen = min(MOST_STEPS_OF_NOBODY, subject.steps), list[dict[str, Array]]()
    empty, dp, unit = restricted(subject.data, np.empty(0, dtype=np.int64)), subject.dp, subject.unit(subject.dp)
    none = np.zeros(canaries, dtype=np.bool_)
    planted, chosen = plant(empty, none, images=dp.images_per_patient, clip_norm=dp.clip_norm)
    subject.train(
        subject.network(),
        planted,
        subject.method,
        subject.work(steps=steps),
        dp,
        secret=audit_secret(seed),
        canaries=chosen,
        watch=lambda _index, noised: seen.append(
            {name: value.detach().cpu().double().numpy() * unit for name, value in noised.items()}
        ),
    )
    shapes = [{name: value.shape for name, value in each.items()} for each in seen]
    if len(seen) != steps or AUDIT_HEAD not in shapes[0] or any(each != shapes[0] for each in shapes):
        raise Refused("audit_not_watched")
    return {name: np.stack([each[name] for each in seen]) for name in seen[0]}


def restricted(data: TrainingData, rows: npt.NDArray[np.int64]) -> TrainingData:
    """Return the data of which only some rows of the store teach."""
    pools = data.pools
    return replace(
        data,
        pools=Pools(
            labelled_classification=np.intersect1d(pools.labelled_classification, rows),
            unlabelled_classification=np.intersect1d(pools.unlabelled_classification, rows),
            labelled_segmentation=np.intersect1d(pools.labelled_segmentation, rows),
            unlabelled_segmentation=np.intersect1d(pools.unlabelled_segmentation, rows),
        ),
    )


def audit_secret(seed: int) -> bytes:
    """Return the secret of an audit's run: known to all, and of no use to anything that is released."""
    return hashlib.sha256(f"multimix audit {seed}".encode()).digest()


def _sampled(data: TrainingData, canaries: Canaries, dp: PatientPrivacy, secret: bytes, steps: int) -> Bools:
    """Return who is in which step, by the auditor's own reading of the secret: canaries are the last patients."""
    taught = replace(data, pools=taught_pools(data.pools, dp.modules))
    everyone, stream = Population.of(taught).count, SecretStream(secret)
    taking_part = len(canaries.coordinates)
    sampled = np.zeros((steps, len(canaries.included)), dtype=np.bool_)
    for step in range(steps):
        drawn = stream.sampled(step, everyone, dp.sampling_rate)
        sampled[step, canaries.coordinates] = drawn[everyone - taking_part :]
    return sampled
