"""Running and scoring one case of a federation: the server's and the sites' own code, in this process.

A hospital alone is a federation of one, with all others held out; pooled is one site that has the images, labels and
masks of all. So every row of the table is trained by the same code.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from multimix.contract.run_config import RunConfig
from multimix.data.hospitals import Hospital
from multimix.data.store import Store
from multimix.errors import CheckpointError, InputError
from multimix.files import write_atomically
from multimix.network import MultiMixNetwork
from multimix.weights import load_model
from server.checkpoint import FILE as CHECKPOINT
from server.job import MODEL
from server.results import Results
from sim.experiments.case import AnyCase, case_sha256
from sim.experiments.scores import Scores, score
from sim.experiments.sources import ScoredSet
from sim.pretrain import pretrain
from sim.run import hospitals_of, simulate

RUN: Final = "run"  # the run folder inside a case's
BEGUN: Final = "begun.txt"  # which case, by which code


def public_model(config: RunConfig, folder: Path, *, workers: int) -> Path:
    """Return the file of a model taught by phantoms as a configuration says, trained in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return pretrain(config.model_copy(update={"out": str(folder)}), workers=workers)


def keep_if_of(folder: Path, case: AnyCase, code: str) -> None:
    """Remove what was begun in a case's folder unless it is of this very case, by this code."""
    mark, key = folder / BEGUN, f"{case_sha256(case)} {code}"
    if not mark.exists() or mark.read_text() != key:
        shutil.rmtree(folder / RUN, ignore_errors=True)
        write_atomically(mark, key.encode())


def refuse_gaps(results: Results) -> None:
    """Raise InputError `site_left_out` unless every hospital's update counted in every round."""
    for each in results.rounds:
        for name, site in each.sites.items():
            if site.state != "accepted":
                raise InputError("site_left_out", f"{name} was {site.state} in round {each.round}: it is not compared.")


def spent(results: Results) -> dict[str, float]:
    """Return the epsilon that a run cost a patient of each site, of two accountants the larger; empty if not private.

    Raises:
        InputError: `not_private` where a private run has no epsilon, or its noise was known.
    """
    sites = results.privacy_details.patients
    found = {name: site.epsilon for name, site in sites.items() if site.epsilon is not None}
    if len(found) < len(sites) or (sites and results.privacy_details.seeded):
        raise InputError("not_private", "A private run ended without an epsilon for every site: it is no private row.")
    return found


def run_federation(config: RunConfig, folder: Path, *, workers: int) -> tuple[MultiMixNetwork, Results]:
    """Run the configuration in a folder, or go on with the run that was interrupted there; return model and results."""
    try:
        resume = (folder / CHECKPOINT).exists()
        results, _ = simulate(config.model_copy(update={"out": str(folder), "resume": resume}), workers=workers)
    except CheckpointError:  # of another configuration or other data, or damaged: nothing in it is of use here
        shutil.rmtree(folder)
        results, _ = simulate(config.model_copy(update={"out": str(folder)}), workers=workers)
    return load_model(folder / MODEL), results


def score_everywhere(network: MultiMixNetwork, config: RunConfig) -> dict[str, Scores]:
    """Score a model at every source: on its test patients, and on all (`/all`) where it was held out."""
    hospitals = hospitals_of(config)
    store = hospitals[0].store()
    return {f"{each.name}/{each.split}": score(network, store, each) for each in sets_of(hospitals, store)}


def sets_of(hospitals: tuple[Hospital, ...], store: Store) -> Iterator[ScoredSet]:
    """Yield what a model trained at the training hospitals is scored on."""
    for name in np.unique(store.source).tolist():
        rows = np.flatnonzero(store.source == name)
        yield ScoredSet(name, "test", rows[store.split[rows] == "test"])
        if any(each.role == "held-out" and each.name == name for each in hospitals):
            yield ScoredSet(name, "all", rows)
