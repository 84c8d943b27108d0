"""How soon a federation is nearly as good as it gets, and what has travelled until then."""

from collections.abc import Mapping, Sequence
from typing import Final

from multimix.config import Frozen
from multimix.contract.messages import MODULES, module_of
from multimix.network import MultiMixNetwork
from server.results import Results, RoundResult
from sim.experiments.owners import LABELLED, MASKED

SHARE: Final = 0.95  # of the last figure; of an AUROC, of what it has above chance
OWNERS: Final[Mapping[str, Sequence[str]]] = {"auroc": LABELLED, "dice": MASKED}
_CHANCE: Final = {"auroc": 0.5, "dice": 0.0}


class Convergence(Frozen):
    """When the mean of a validation figure over the sites first reached its share of the last one."""

    rounds: int  # of training until then
    sent_bytes: int  # of weights, to and from all sites, in those rounds
    last: float


def convergence(
    results: Results, network: MultiMixNetwork, owners: Mapping[str, Sequence[str]] = OWNERS
) -> dict[str, Convergence]:
    """Return it for AUROC at the sites with labels and Dice at those with masks of one convention: `owners`.

    A round's figures are of the model before it, so the last ones are of the model before the last round.
    """
    found = {}
    for metric, chance in _CHANCE.items():
        curve = [_mean(each, metric, owners[metric]) for each in results.rounds]
        last = next((value for value in reversed(curve) if value is not None), None)
        if last is None or last <= chance:
            continue
        goal = chance + SHARE * (last - chance)
        rounds = next(number for number, value in enumerate(curve) if value is not None and value >= goal)
        sent = sum(_sent_bytes(each, network) for each in results.rounds[:rounds])
        found[metric] = Convergence(rounds=rounds, sent_bytes=sent, last=last)
    return found


def _mean(result: RoundResult, metric: str, owners: Sequence[str]) -> float | None:
    sites = (result.sites[name] for name in owners if name in result.sites)
    values = [value for site in sites if (value := site.metrics.get(metric)) is not None]
    return sum(values) / len(values) if values else None


def _sent_bytes(result: RoundResult, network: MultiMixNetwork) -> int:
    """Return the bytes of a round: every site is sent the whole model and sends back the modules it taught."""
    sizes = dict.fromkeys(MODULES, 0)
    for name, value in network.state_dict().items():
        sizes[module_of(name)] += value.numel() * value.element_size()
    total = 0
    for site in result.sites.values():
        taught = (m for m, who in site.teachers.items() if who.labelled_patients + who.unlabelled_patients)
        total += sum(sizes.values()) + sum(sizes[module] for module in taught)
    return total
