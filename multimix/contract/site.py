"""The one interface of a hospital: describe, train, evaluate. In process now, over a unix socket later."""

from dataclasses import dataclass
from typing import Protocol

from multimix.contract.messages import EvaluateReport, Picture, SiteCard, TrainReport, Weights
from multimix.contract.signing import SignedPlan


@dataclass(frozen=True)
class Trained:
    """A site's answer to a training plan."""

    report: TrainReport
    weights: Weights


@dataclass(frozen=True)
class Evaluated:
    """A site's answer to an evaluation plan."""

    report: EvaluateReport
    pictures: tuple[Picture, ...] = ()


class Site(Protocol):
    """What server code may ask of a hospital. Each method raises `Refused` with a reason code."""

    def describe(self) -> SiteCard:
        """Return what policy lets the site say about itself."""
        ...

    def train(self, signed: SignedPlan, weights: Weights) -> Trained:
        """Train for one round from the weights given; the fresh state of the site is gone afterwards."""
        ...

    def evaluate(self, signed: SignedPlan, weights: Weights) -> Evaluated:
        """Score the weights given."""
        ...
