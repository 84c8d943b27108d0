"""Doing one case: train, score, keep. What an experiment's worker process runs."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from multimix.acceleration import EXACT, Acceleration
from multimix.config import MethodConfig
from multimix.contract.run_config import RunConfig
from multimix.data.sampling import union
from multimix.data.store import Store
from multimix.network import MultiMixNetwork
from multimix.training import resolve_device
from multimix.version import code_version
from multimix.weights import export, load_model, save_model
from sim.experiments.baselines import score_baseline
from sim.experiments.case import (
    AnyCase,
    BaselineCase,
    CentralCase,
    EnsembleCase,
    FederatedCase,
    PhantomCase,
    ScaleCase,
    case_name,
    case_sha256,
)
from sim.experiments.central import score_case, train_case
from sim.experiments.convergence import Convergence, convergence
from sim.experiments.ensemble import score_ensemble
from sim.experiments.federated import (
    RUN,
    keep_if_of,
    public_model,
    refuse_gaps,
    run_federation,
    score_everywhere,
    sets_of,
    spent,
)
from sim.experiments.federations import LOCAL
from sim.experiments.lungs import cut_to_lungs
from sim.experiments.record import MODEL, SCORES, CaseRecord, finished, software, write_record
from sim.experiments.scaling import Scaling, measure
from sim.experiments.scores import ScoreFile, Scores
from sim.experiments.sources import paper_store, scored_sets, training_data
from sim.run import hospitals_of

Told = Callable[[int], None]


@dataclass(frozen=True)
class Place:
    """Where the data is, and where results go: a folder for each case below `out`."""

    data: Path  # with chex224/ and cxr/
    out: Path
    cache: Path
    workers: int = 1  # processes of one federation
    acceleration: Acceleration = EXACT  # of central training
    _fingerprints: dict[tuple[str, int], str] = field(default_factory=dict, compare=False, repr=False)

    def folder(self, case: AnyCase) -> Path:
        """Return the folder of a case."""
        return self.out / case_name(case)

    def config(self, case: FederatedCase | PhantomCase | ScaleCase) -> RunConfig:
        """Return the configuration of a federation here; of a public model, that of the one it is scored as."""
        config = case.scored if isinstance(case, PhantomCase) else case.config
        return config.model_copy(update={"data": str(self.data / "cxr"), "cache": str(self.cache)})

    def store(self, case: AnyCase) -> Store:
        """Open, or decode, the images of a case."""
        if isinstance(case, BaselineCase | EnsembleCase):
            return self.store(case.other)
        if isinstance(case, CentralCase):
            return paper_store(self.data, cache=self.cache, image_size=case.image_size)
        return hospitals_of(self.config(case))[0].store()

    def fingerprint(self, case: AnyCase) -> str:
        """Return the hash of the images of a case, decoding them if need be; the cases of an experiment share it."""
        key = (case.kind, case.image_size)
        if key not in self._fingerprints:
            self._fingerprints[key] = self.store(case).fingerprint
        return self._fingerprints[key]

    def finished(self, case: AnyCase) -> CaseRecord | None:
        """Return the record of a case that is finished here; None where there is work to do."""
        return finished(self.folder(case), case, self.fingerprint(case))


@dataclass
class _Outcome:
    """What a case gave; a baseline has no network."""

    network: MultiMixNetwork | None
    scores: dict[str, Scores]
    train_s: float
    score_s: float
    losses: dict[str, float] = field(default_factory=dict)
    pseudo_label_rate: float | None = None
    convergence: dict[str, Convergence] = field(default_factory=dict)
    scaling: Scaling | None = None
    epsilon_spent: dict[str, float] = field(default_factory=dict)


def do(case: AnyCase, place: Place, *, told: Told | None = None) -> CaseRecord:
    """Do a case, or return the record of it if it is done; `told` is how many steps of a central one are finished.

    Raises:
        InputError: the data or the configuration cannot be used.
    """
    folder, store = place.folder(case), place.store(case)
    if (record := finished(folder, case, store.fingerprint)) is not None:
        return record
    folder.mkdir(parents=True, exist_ok=True)
    outcome = _outcome(case, place, store, folder, told)
    ScoreFile(outcome.scores).save(folder / SCORES)
    acceleration = place.acceleration if isinstance(case, CentralCase) else EXACT
    record = CaseRecord(
        case=case,
        case_sha256=case_sha256(case),
        data_sha256=store.fingerprint,
        code=code_version(),
        software=software(),
        device=str(resolve_device("auto")) + acceleration.in_words,
        acceleration=acceleration,
        finished=datetime.now(UTC),
        train_s=outcome.train_s,
        score_s=outcome.score_s,
        parameters=sum(p.numel() for p in outcome.network.parameters()) if outcome.network else 0,
        losses=outcome.losses,
        pseudo_label_rate=outcome.pseudo_label_rate,
        convergence=outcome.convergence,
        scaling=outcome.scaling,
        epsilon_spent=outcome.epsilon_spent,
    )
    write_record(folder, record)
    return record


def _outcome(case: AnyCase, place: Place, store: Store, folder: Path, told: Told | None) -> _Outcome:
    if isinstance(case, BaselineCase):
        return _baseline(case, place, store)
    if isinstance(case, FederatedCase):
        return _federated(case, place, folder)
    if isinstance(case, EnsembleCase):
        return _ensemble(case, place, store)
    if isinstance(case, PhantomCase):
        return _phantoms(case, place, folder)
    if isinstance(case, ScaleCase):
        return _scaling(case, place, folder)
    if case.lungs_by is not None:
        outcome = _on_lungs(case, case.lungs_by, place, store)
    else:
        outcome = _central(case, place, store, told)
    if outcome.network is not None:
        save_model(folder / MODEL, export(outcome.network), outcome.network.config, fit="stretch")
    return outcome


def _on_lungs(case: CentralCase, lungs_by: MethodConfig, place: Place, store: Store) -> _Outcome:
    """Train the U-Net, cut, then do the case on what was cut."""
    started = time.monotonic()
    first = case.model_copy(update={"method": lungs_by, "labels": 0, "masks": case.lungs_masks, "lungs_by": None})
    network = train_case(first, store, acceleration=place.acceleration).network
    with cut_to_lungs(store, network, place.cache) as lungs:
        drawn = time.monotonic()
        outcome = _central(case, place, lungs, None)
    outcome.train_s += drawn - started
    return outcome


def _baseline(case: BaselineCase, place: Place, store: Store) -> _Outcome:
    started = time.monotonic()
    if isinstance(case.of, CentralCase):
        pools = training_data(store, labels=case.of.labels, masks=case.of.masks, seed=case.seed, shared=False).pools
        sets = list(scored_sets(store))
    else:
        hospitals = hospitals_of(place.config(case.of))
        pools = union([each.pools(store, case.of.config.mask_convention) for each in hospitals])
        sets = list(sets_of(hospitals, store))
    return _Outcome(None, score_baseline(case.row, store, pools, sets), train_s=0.0, score_s=time.monotonic() - started)


def _scaling(case: ScaleCase, place: Place, folder: Path) -> _Outcome:
    started = time.monotonic()
    for old in folder.glob("run*/"):  # of a run that was interrupted
        shutil.rmtree(old)
    scaling = measure(place.config(case), case.row, folder)
    network = MultiMixNetwork(case.config.method().network)
    return _Outcome(network, {}, train_s=time.monotonic() - started, score_s=0.0, scaling=scaling)


def _ensemble(case: EnsembleCase, place: Place, store: Store) -> _Outcome:
    started = time.monotonic()
    classifiers, segmenters = (
        [load_model(place.folder(member) / RUN / MODEL) for member in members]
        for members in (case.classifiers, case.segmenters)
    )
    sets = sets_of(hospitals_of(place.config(case.like)), store)
    scores = score_ensemble(classifiers, segmenters, store, list(sets))
    return _Outcome(None, scores, train_s=0.0, score_s=time.monotonic() - started)


def _central(case: CentralCase, place: Place, store: Store, told: Told | None) -> _Outcome:
    started = time.monotonic()
    trained = train_case(case, store, acceleration=place.acceleration, progress=told)
    middle = time.monotonic()
    return _Outcome(
        trained.network,
        score_case(trained.network, store),
        train_s=middle - started,
        score_s=time.monotonic() - middle,
        losses=trained.training.losses,
        pseudo_label_rate=trained.training.pseudo_label_rate,
    )


def _federated(case: FederatedCase, place: Place, folder: Path) -> _Outcome:
    config = place.config(case)
    keep_if_of(folder, case, code_version())
    if case.from_phantoms:
        config = config.model_copy(update={"start_from": str(place.folder(case.from_phantoms) / MODEL)})
    network, results = run_federation(config, folder / RUN, workers=place.workers)
    refuse_gaps(results)
    started = time.monotonic()
    last = results.rounds[-1].sites.values()
    rates = [rate for site in last if (rate := site.losses.get("pseudo_label_rate")) is not None]
    return _Outcome(
        network,
        score_everywhere(network, config),
        train_s=sum(each.seconds for each in results.rounds),
        score_s=time.monotonic() - started,
        pseudo_label_rate=sum(rates) / len(rates) if rates else None,
        convergence={} if case.config.pooled or case.group == LOCAL else convergence(results, network),
        epsilon_spent=spent(results),
    )


def _phantoms(case: PhantomCase, place: Place, folder: Path) -> _Outcome:
    started = time.monotonic()
    config = case.config.model_copy(update={"cache": str(place.cache)})
    path = public_model(config, folder / RUN, workers=place.workers)
    network = load_model(path)
    shutil.copyfile(path, folder / MODEL)
    middle = time.monotonic()
    scores = score_everywhere(network, place.config(case))
    return _Outcome(network, scores, train_s=middle - started, score_s=time.monotonic() - middle)
