"""Which drawing convention of lung masks a run learns, figures by it, and the mean mask that every model must beat."""

from collections import Counter

from multimix.contract.messages import MeanMask, SiteCard
from multimix.contract.statistics import EvaluationStatistics
from multimix.errors import RunConfigError
from multimix.metrics import summarise
from server.results import Metrics


def choose_convention(cards: dict[str, SiteCard], asked: str) -> str | None:
    """Return the convention to learn; None accepts all.

    `auto` is that of the held-out hospitals if they share one, else the one with most masked training patients.
    RunConfigError `mask_convention` for a name that no site has.
    """
    if asked == "all":
        return None
    training = Counter[str]()
    for card in cards.values():
        if card.role == "train":
            training.update(card.masked_patients)
    if asked != "auto":
        if asked not in training:
            raise RunConfigError(
                "mask_convention",
                f"mask-convention = {asked!r}, but training sites have {', '.join(sorted(training)) or 'no masks'}: "
                "choose one of these, auto or all.",
            )
        return asked
    unseen = {name for card in cards.values() if card.role == "held-out" for name in card.conventions}
    if len(unseen) == 1 and unseen <= set(training):
        return unseen.pop()
    return max(sorted(training), key=lambda name: training[name]) if training else None


def federated_mean_mask(cards: dict[str, SiteCard], convention: str | None) -> MeanMask | None:
    """Average the training sites' mean masks by masked patients; None where no site released one."""
    total, sums = 0, None
    for site in sorted(cards):
        card = cards[site]
        if card.role != "train":
            continue
        for name, mask in sorted(card.mean_masks.items()):
            if convention in (None, name):
                count = card.masked_patients.get(name, 0)
                weighted = [count * value for value in mask]
                sums = weighted if sums is None else [a + b for a, b in zip(sums, weighted, strict=True)]
                total += count
    return tuple(round(value / total) for value in sums) if sums and total else None


def site_figures(statistics: EvaluationStatistics, convention: str | None) -> Metrics:
    """Return a site's figures, by the learned convention where the site has it, else by whatever it has."""
    return summarise(statistics, convention if convention in statistics.segmentation else None)
