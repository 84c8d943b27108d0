"""Averaging per module by who taught it, or as plain FedAvg, in float64 and in site order; as a Flower strategy.

Per module, for site s and module m, the weight is w(s, m) = L + u U: L distinct patients whose label or mask gave m
gradient, U those reaching it by consistency only. Plain is FedAvg (McMahan et al. 2017, arXiv 1602.05629): a site has
one weight for the whole model. Either way a module that nobody taught keeps its previous values exactly. FedProx (arXiv
1812.06127) differs at the sites only.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from multimix.contract.messages import MODULES, Weights, module_of
from multimix.contract.records import ARRAYS, PLAN, array_record
from multimix.contract.run_config import Weighting
from multimix.privacy.central import SiteLevel, average_privately
from server.admission import Update


@dataclass(frozen=True)
class Average:
    """The new weights and how much each site contributed to each module."""

    weights: Weights
    shares: dict[str, dict[str, float]]  # module -> site -> share in [0, 1]
    kept: tuple[str, ...]  # modules that nobody taught


class RunningAverage:
    """The average of a round's updates as they come in, so that no update is kept.

    Guarantees: the same bits for the same updates, since they are added in the order of their sites' names; a module
    that nobody taught is bit-identical to `previous`, and so is an array that one of its module's teachers left out.
    """

    def __init__(self, previous: Weights, *, unlabelled_weight: float, weighting: Weighting = "per-module") -> None:
        """Plain weighting is FedAvg's: one weight a site, by the distinct patients it trained on, for all modules.

        Under it the value that a site received stands for an array that it did not send. It is not for private
        updates, whose plans fix a weight for each module.
        """
        self._previous = previous
        self._unlabelled_weight = unlabelled_weight
        self._plain = weighting == "plain"
        self._present = [m for m in MODULES if m in {module_of(name) for name in previous}]
        self._weights: dict[str, dict[str, float]] = {module: {} for module in self._present}
        self._sums: dict[str, np.ndarray] = {}
        self._incomplete: set[str] = set()  # arrays that a teacher of their module left out
        self._taught: set[str] = set()  # modules that somebody sent
        self._last = ""

    def add(self, update: Update) -> None:
        """Add one admitted update; ValueError unless its site's name is after those added before."""
        if update.site <= self._last:
            raise ValueError("updates are added in the order of their sites' names")
        self._last = update.site
        self._taught |= {module_of(name) for name in update.weights}
        weights = {module: self._weight(update, module) for module in self._present}
        for module, weight in weights.items():
            if weight > 0.0:
                self._weights[module][update.site] = weight
        for name, value in self._previous.items():
            weight = weights[module_of(name)]
            if weight <= 0.0:
                continue
            if name not in update.weights and not self._plain:
                self._incomplete.add(name)
                continue
            if name not in self._sums:
                self._sums[name] = np.zeros(value.shape, dtype=np.float64)
            self._sums[name] += weight * update.weights.get(name, value).astype(np.float64)

    def result(self) -> Average:
        """Return the average of what was added."""
        totals = {module: sum(weights.values()) for module, weights in self._weights.items()}
        kept = tuple(m for m in self._present if not totals[m] or (self._plain and m not in self._taught))
        result = {
            name: value
            if module_of(name) in kept or name in self._incomplete
            else (self._sums[name] / totals[module_of(name)]).astype(value.dtype)
            for name, value in self._previous.items()
        }
        shares = {
            module: {site: weight / totals[module] for site, weight in weights.items()}
            for module, weights in self._weights.items()
            if module not in kept
        }
        return Average(result, shares, kept)

    def _weight(self, update: Update, module: str) -> float:
        return _patients(update) if self._plain else _weight(update, module, self._unlabelled_weight)


def average(
    previous: Weights, updates: Iterable[Update], *, unlabelled_weight: float, weighting: Weighting = "per-module"
) -> Average:
    """Average the admitted updates of one round, in whatever order they are given; see `RunningAverage`."""
    running = RunningAverage(previous, unlabelled_weight=unlabelled_weight, weighting=weighting)
    for update in sorted(updates, key=lambda update: update.site):
        running.add(update)
    return running.result()


def _weight(update: Update, module: str, unlabelled_weight: float) -> float:
    if update.private_weights is not None:
        return update.private_weights.get(module, 0.0)
    teachers = update.report.teachers[module]
    return teachers.labelled + unlabelled_weight * teachers.unlabelled


def _patients(update: Update) -> int:
    """Return how many distinct patients a site trained on in this round: all of them reach the encoder."""
    teachers = update.report.teachers["encoder"]
    return teachers.labelled + teachers.unlabelled


@dataclass(frozen=True)
class SiteLevelRound:
    """What is fixed in every round under site-level privacy: the noise, the sites, and the arrays that learn."""

    settings: SiteLevel
    sites: tuple[str, ...]  # of the job, whoever answers
    trained: frozenset[str]


def noised_average(previous: Weights, updates: Iterable[Update], fixed: SiteLevelRound) -> Average:
    """Average with site-level privacy: every site counts the same in every module, whatever it taught or sent.

    Guarantees: but for the noised weights nothing depends on the updates; without any, the noise is there all the same.
    """
    received = {update.site: update.weights for update in updates}
    noised = average_privately(previous, received, fixed.settings, trained=fixed.trained)
    present, learning = ({module_of(name) for name in names} for names in (previous, fixed.trained))
    shares = dict.fromkeys(sorted(fixed.sites), 1.0 / fixed.settings.sites)
    return Average(
        noised.weights,
        {module: dict(shares) for module in MODULES if module in learning},
        tuple(module for module in MODULES if module in present - learning),
    )


def order(node: int, arrays: ArrayRecord, plan: ConfigRecord, kind: str) -> Message:
    """Address one order to one node."""
    return Message(content=RecordDict({ARRAYS: arrays, PLAN: plan}), message_type=kind, dst_node_id=node)


class ModuleAverage(FedAvg):
    """Flower's FedAvg with the weighting of the run; it asks the nodes it is told to and never waits for absent ones.

    The round loop admits replies first and gives the admitted updates to `take_in`, one by one.
    """

    def __init__(
        self,
        *,
        unlabelled_weight: float,
        weighting: Weighting = "per-module",
        site_level: SiteLevelRound | None = None,
    ) -> None:
        super().__init__(min_train_nodes=0, min_evaluate_nodes=0, min_available_nodes=0)
        self.site_level = site_level
        self.weighting = weighting
        self.unlabelled_weight = unlabelled_weight
        self.plans: dict[int, ConfigRecord] = {}  # of this round, by node
        self.previous: Weights = {}
        self.accepted = 0
        self.result: Average | None = None
        self._running: RunningAverage | None = None
        self._kept: list[Update] = []  # under site-level privacy, where the sum is made at once

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address one training order to each node of this round, with the plan of its own."""
        del server_round, grid, config
        return [order(node, arrays, plan, MessageType.TRAIN) for node, plan in self.plans.items()]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address one evaluation order to each node of this round."""
        del server_round, grid
        return [order(node, arrays, config, MessageType.EVALUATE) for node in self.plans]

    def take_in(self, update: Update) -> None:
        """Add an admitted update to the average of this round; ValueError unless sites come in the order of names."""
        self.accepted += 1
        if self.site_level is not None:
            self._kept.append(update)
            return
        if self._running is None:
            self._running = RunningAverage(
                self.previous, unlabelled_weight=self.unlabelled_weight, weighting=self.weighting
            )
        self._running.add(update)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the updates taken in; under site-level privacy even if there is none.

        Whose update is whose was settled when it was admitted: what a reply says of its sender is the sender's word.
        """
        del server_round, replies
        if self.site_level is not None:
            self.result = noised_average(self.previous, self._kept, self.site_level)
        elif self._running is not None:
            self.result = self._running.result()
        else:
            return None, None
        return array_record(self.result.weights), MetricRecord({"accepted-sites": self.accepted})
