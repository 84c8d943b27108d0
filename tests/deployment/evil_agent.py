"""A hospital that lies: the real agent, its answers to training altered on their way out.

    python -m tests.deployment.evil_agent KIND[,KIND...] --site FOLDER

One kind for each round of a job; the last one goes on. Reports are made to fit what is sent where they can, so that
each answer is left out for the one thing that is wrong with it.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from client.agent import process
from client.agent.orders import Progress
from client.agent.service import Served, TrainingSite
from client.agent.warm import WarmSite
from client.settings import open_site
from multimix.contract.messages import SiteCard, Weights, weights_sha256
from multimix.contract.signing import SignedPlan
from multimix.contract.site import Evaluated, Trained
from multimix.errors import Refused

LARGE_BYTES = 64 << 20


def with_weights(trained: Trained, weights: Weights) -> Trained:
    """Put other weights in, and their hash."""
    return Trained(trained.report.model_copy(update={"weights_sha256": weights_sha256(weights)}), weights)


def no_numbers(trained: Trained, _earlier: Trained) -> Trained:
    return with_weights(trained, {name: np.full_like(value, np.nan) for name, value in trained.weights.items()})


def huge(trained: Trained, _earlier: Trained) -> Trained:
    return with_weights(trained, {name: value * np.float32(1e6) for name, value in trained.weights.items()})


def large(trained: Trained, _earlier: Trained) -> Trained:
    more = np.zeros(LARGE_BYTES // 4, np.float32)
    return with_weights(trained, {**trained.weights, "encoder.more": more})


def stale(trained: Trained, earlier: Trained) -> Trained:
    """Say that it answers an earlier round."""
    return rebound(_reported(trained, round=earlier.report.round), earlier)


def rebound(trained: Trained, earlier: Trained) -> Trained:
    """Say that it answers this round, by the plan of an earlier one."""
    return _reported(trained, plan_sha256=earlier.report.plan_sha256)


def _reported(trained: Trained, **said: object) -> Trained:
    return replace(trained, report=trained.report.model_copy(update=said))


LIES: dict[str, Callable[[Trained, Trained], Trained]] = {
    "honest": lambda trained, _earlier: trained,
    "nan": no_numbers,
    "huge": huge,
    "large": large,
    "stale": stale,
    "rebound": rebound,
    "replayed": lambda _trained, earlier: earlier,  # the very bytes
}
REFUSES = "refuses"


@dataclass
class Liar:
    """What it does in each round, and the first answer it ever gave."""

    kinds: tuple[str, ...]
    first: list[Trained] = field(default_factory=list)

    def answer(self, site: TrainingSite, signed: SignedPlan, weights: Weights, progress: Progress | None) -> Trained:
        number = json.loads(signed.document)["round"]
        kind = self.kinds[min(number, len(self.kinds)) - 1]
        if kind == REFUSES:
            raise Refused("training_failed")
        trained = site.train(signed, weights, progress=progress)
        self.first = self.first or [trained]
        return LIES[kind](trained, self.first[0])


@dataclass(frozen=True)
class LyingSite:
    """A site whose answers to training are the liar's."""

    site: TrainingSite
    liar: Liar

    def describe(self) -> SiteCard:
        return self.site.describe()

    def train(self, signed: SignedPlan, weights: Weights, *, progress: Progress | None = None) -> Trained:
        return self.liar.answer(self.site, signed, weights, progress)

    def evaluate(self, signed: SignedPlan, weights: Weights) -> Evaluated:
        return self.site.evaluate(signed, weights)


def main() -> None:
    """Be the agent of a site until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds")
    parser.add_argument("--site", type=Path, required=True)
    asked = parser.parse_args()
    liar = Liar(tuple(asked.kinds.split(",")))

    class LyingWarmSite(WarmSite):
        def served(self) -> Served:
            served = super().served()
            return replace(served, site=LyingSite(served.site, liar))

    process.WarmSite = LyingWarmSite
    process.run_agent(open_site(asked.site), open_site(asked.site).socket, ready=lambda: print("ready"))


if __name__ == "__main__":
    main()
