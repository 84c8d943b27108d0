"""Averaging per module by who taught it, in float64 and in site order; as a Flower strategy.

For site s and module m the weight is w(s, m) = L + u U: L distinct patients whose label or mask gave m gradient, U
those reaching it by consistency only. A module that nobody taught keeps its previous values exactly. FedAvg is
McMahan et al. 2017 (arXiv 1602.05629); FedProx (arXiv 1812.06127) differs at the sites only.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from multimix.contract.messages import MODULES, Weights, module_of
from multimix.contract.records import ARRAYS, PLAN, array_record
from multimix.privacy.central import SiteLevel, average_privately
from server.admission import Update


@dataclass(frozen=True)
class Average:
    """The new weights and how much each site contributed to each module."""

    weights: Weights
    shares: dict[str, dict[str, float]]  # module -> site -> share in [0, 1]
    kept: tuple[str, ...]  # modules that nobody taught


def average(previous: Weights, updates: Iterable[Update], *, unlabelled_weight: float) -> Average:
    """Average the admitted updates of one round.

    Guarantees: independent of the order of updates; a module without teachers is bit-identical to `previous`.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    shares: dict[str, dict[str, float]] = {}
    kept = []
    for module in MODULES:
        weights = {u.site: _weight(u, module, unlabelled_weight) for u in ordered}
        total = sum(weights.values())
        if total <= 0.0:
            kept.append(module)
            continue
        shares[module] = {site: weight / total for site, weight in weights.items() if weight > 0.0}
    result: Weights = {}
    for name, value in previous.items():
        module = module_of(name)
        if module not in shares or not all(name in u.weights for u in ordered if u.site in shares[module]):
            result[name] = value  # nobody taught it, or the plan keeps it frozen
            continue
        mean = np.zeros(value.shape, dtype=np.float64)
        for update in ordered:
            if update.site in shares[module]:
                mean += shares[module][update.site] * update.weights[name].astype(np.float64)
        result[name] = mean.astype(value.dtype)
    present = {module_of(name) for name in previous}
    return Average(result, {m: s for m, s in shares.items() if m in present}, tuple(m for m in kept if m in present))


def _weight(update: Update, module: str, unlabelled_weight: float) -> float:
    if update.private_weights is not None:
        return update.private_weights.get(module, 0.0)
    teachers = update.report.teachers[module]
    return teachers.labelled + unlabelled_weight * teachers.unlabelled


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
    """Flower's FedAvg with our weighting; it asks the nodes it is told to and never waits for absent ones.

    The round loop admits replies first and puts the admitted ones here, by message.
    """

    def __init__(self, *, unlabelled_weight: float, site_level: SiteLevelRound | None = None) -> None:
        super().__init__(min_train_nodes=0, min_evaluate_nodes=0, min_available_nodes=0)
        self.site_level = site_level
        self.unlabelled_weight = unlabelled_weight
        self.plans: dict[int, ConfigRecord] = {}  # of this round, by node
        self.previous: Weights = {}
        self.admitted: dict[int, Update] = {}  # by node
        self.result: Average | None = None

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

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the admitted updates; under site-level privacy even if there is none.

        Whose update is whose was settled when it was admitted: what a reply says of its sender is the sender's word.
        """
        del server_round, replies
        updates = list(self.admitted.values())
        if self.site_level is not None:
            self.result = noised_average(self.previous, updates, self.site_level)
        elif updates:
            self.result = average(self.previous, updates, unlabelled_weight=self.unlabelled_weight)
        else:
            return None, None
        return array_record(self.result.weights), MetricRecord({"accepted-sites": len(updates)})
