"""Training and scoring one case of the paper's task, in one process."""

from collections.abc import Callable
from dataclasses import dataclass

from multimix.acceleration import EXACT, Acceleration
from multimix.contract.messages import LocalWork
from multimix.data.store import Store
from multimix.network import MultiMixNetwork, new_network
from multimix.training import Training, resolve_device, train
from multimix.weights import export, load_into
from sim.experiments.case import CentralCase
from sim.experiments.scores import Scores, score_all
from sim.experiments.sources import scored_sets, training_data

# How a trained model is asked again, to see whether its decoder looks at the saliency at all.
CONTROLS = ("zero", "shuffled")


@dataclass(frozen=True)
class Trained:
    """A network and what its training said."""

    network: MultiMixNetwork
    training: Training


def train_case(
    case: CentralCase,
    store: Store,
    *,
    acceleration: Acceleration = EXACT,
    progress: Callable[[int], None] | None = None,
) -> Trained:
    """Train a case from nothing; `progress` is told how many steps are done.

    Raises:
        ManifestError: `budget_too_large`.
    """
    data = training_data(
        store,
        labels=case.labels,
        masks=case.masks,
        seed=case.seed,
        shared=case.method.objective.share_unlabelled,
    )
    network = new_network(case.method.network, case.seed).to(resolve_device("auto"))
    network.accelerate(acceleration)
    work = LocalWork(steps=case.steps, images_per_group=case.images_per_group, total_steps=case.steps)
    training = train(network, data, case.method, work, seed=case.seed, progress=progress)
    network.acceleration = EXACT  # what it says is scored exactly, as under the controls of its bridge
    return Trained(network, training)


def score_case(network: MultiMixNetwork, store: Store) -> dict[str, Scores]:
    """Score every set, and those with masks again with a control in the place of the saliency (`@zero`)."""
    sets = scored_sets(store)
    found = score_all(network, store, sets)
    if network.config.segmentation and network.config.bridge == "saliency":
        masked = [each for each in sets if (store.mask_row[each.rows] >= 0).any()]
        for control in CONTROLS:
            scored = score_all(with_bridge(network, control), store, masked)
            found |= {f"{name}@{control}": scores for name, scores in scored.items()}
    return found


def with_bridge(network: MultiMixNetwork, bridge: str) -> MultiMixNetwork:
    """Return the same weights behind another bridge."""
    config = network.config.model_copy(update={"bridge": bridge})
    device = next(network.parameters()).device
    return load_into(MultiMixNetwork(config), export(network)).to(device)
