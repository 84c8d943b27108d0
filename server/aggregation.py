"""Averaging per module by who taught it, or as plain FedAvg, in float64 and in site order; as a Flower strategy.

Per module, for site s and module m, the weight is w(s, m) = L + u U: L distinct patients whose label or mask gave m
gradient, U those reaching it by consistency only. Plain is FedAvg (McMahan et al. 2017, arXiv 1602.05629): a site has
one weight for the whole model. Either way a module that nobody taught keeps its previous values exactly. FedProx (arXiv
1812.06127) differs at the sites only.
"""

from collections.abc import Iterable, Mapping
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


def average(previous: Weights, updates: Iterable[Update], *, unlabelled_weight: float) -> Average:
    """Average the admitted updates of one round, each module by who taught it.

    Guarantees: independent of the order of updates; a module without teachers is bit-identical to `previous`.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    present = {module_of(name) for name in previous}
    shares = {m: _shares({u.site: _weight(u, m, unlabelled_weight) for u in ordered}) for m in MODULES if m in present}
    result: Weights = {}
    for name, value in previous.items():
        teachers = [u for u in ordered if u.site in shares[module_of(name)]]
        if teachers and all(name in u.weights for u in teachers):
            result[name] = _mean(value, shares[module_of(name)], {u.site: u.weights[name] for u in teachers})
        else:
            result[name] = value  # nobody taught it, or the plan keeps it frozen
    return _averaged(result, shares)


def plain_average(previous: Weights, updates: Iterable[Update]) -> Average:
    """Average the admitted updates of one round as FedAvg does: a site has one share, the same in every module.

    The share follows the distinct patients that took part in the site's training, with a label or without. Where a site
    sent no array the value that it received stands for it.

    Guarantees: as `average`. Not for private updates, whose plans fix a weight for each module.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    shares = _shares({update.site: _patients(update) for update in ordered})
    sharing = [update for update in ordered if update.site in shares]
    taught = {module_of(name) for update in sharing for name in update.weights}
    result: Weights = {}
    for name, value in previous.items():
        if module_of(name) in taught:
            result[name] = _mean(value, shares, {u.site: u.weights.get(name, value) for u in sharing})
        else:
            result[name] = value
    present = {module_of(name) for name in previous}
    return _averaged(result, {m: dict(shares) if m in taught else {} for m in MODULES if m in present})


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the sites that weigh something and their shares, which sum to 1; none where nobody does."""
    total = sum(weights.values())
    return {site: weight / total for site, weight in weights.items() if weight > 0.0}


def _mean(previous: np.ndarray, shares: Mapping[str, float], values: Weights) -> np.ndarray:
    """Return the mean of one array over sites, in the type it had; the order of `values` decides the last bit."""
    mean = np.zeros(previous.shape, dtype=np.float64)
    for site, value in values.items():
        mean += shares[site] * value.astype(np.float64)
    return mean.astype(previous.dtype)


def _averaged(weights: Weights, shares: Mapping[str, dict[str, float]]) -> Average:
    """Return the average; a module without shares is one that was kept."""
    return Average(weights, {m: s for m, s in shares.items() if s}, tuple(m for m, s in shares.items() if not s))


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

    The round loop admits replies first and puts the admitted ones here, by message.
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
        elif updates and self.weighting == "plain":
            self.result = plain_average(self.previous, updates)
        elif updates:
            self.result = average(self.previous, updates, unlabelled_weight=self.unlabelled_weight)
        else:
            return None, None
        return array_record(self.result.weights), MetricRecord({"accepted-sites": len(updates)})
