"""The site under audit: its images as a past round saw them, its books, and the orders it keeps.

A real site and a site of a simulation look alike from here on. Nothing of a site is changed: the ledger is read without
its lock, and no reply is committed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.envelopes import unpack_order
from client.hospital import hospital_of
from client.intake.pinned import pinned_store
from client.population import PopulationSettings
from client.settings import SiteFolder
from client.simulated import simulated_ledger, simulated_population
from client.site import private_data
from multimix.batches import TrainingData
from multimix.contract.messages import Name, RoundPlan, Weights, weights_sha256
from multimix.contract.run_config import RunConfig, Scalar, read_run_config
from multimix.contract.signing import SignedPlan, public_key, simulation_key
from multimix.data.hospitals import Hospital
from multimix.data.sampling import Budget
from multimix.data.simulation import simulated_hospitals
from multimix.data.store import Store
from multimix.errors import Refused, RunConfigError, SiteError
from multimix.privacy.entries import Binding, Entry
from multimix.privacy.history import reservations
from multimix.privacy.ledger import Ledger, read_ledger
from multimix.privacy.reservations import Reservations

_RESULTS: Final = "results.json"  # of a run folder; `server.results` writes it
_NODES: Final = 4  # of a simulation in process, where the configuration names no number of phantom hospitals

Images = tuple[Hospital, Store]


@dataclass(frozen=True)
class AuditedSite:
    """What an audit needs of a site."""

    name: str
    ledger: Path  # the folder
    population: PopulationSettings
    coordinator: Ed25519PublicKey | None  # None: plans are not checked for their signature
    pinned: Callable[[str], Images]  # by the data's fingerprint; Refused `generation_gone`
    current: Callable[[], Images]

    def read_ledger(self) -> Ledger:
        """Read and verify the ledger; Refused as `read_ledger`."""
        return read_ledger(self.ledger, site=self.name, population=self.population.name)

    @property
    def kept(self) -> Reservations:
        """The secrets, replies and orders beside the ledger."""
        return Reservations(self.ledger)

    def data(self, plan: RoundPlan) -> TrainingData:
        """Return what the site would train on now under a private plan."""
        return private_data(*self.current(), plan)

    def first_order(self, entries: Iterable[Entry], job_id: str) -> tuple[Weights, str]:
        """Return the weights that a run began with here, and the fingerprint of the images it began on.

        Raises:
            Refused: `order_missing` where no order of the run is kept; as `kept_order`.
        """
        for reservation in reservations(entries, job_id):
            if self.kept.has_order(reservation.binding):
                _signed, weights = kept_order(self.kept, reservation.binding)
                return weights, reservation.binding.data_fingerprint
        raise Refused("order_missing")

    def last_order(self, entries: Iterable[Entry]) -> tuple[RoundPlan, Weights]:
        """Return the newest order kept, and the weights received with it.

        Raises:
            Refused: `order_missing` where none is kept; as `kept_order` and `plan_of`.
        """
        for reservation in reversed(reservations(entries)):
            if self.kept.has_order(reservation.binding):
                signed, weights = kept_order(self.kept, reservation.binding)
                return plan_of(signed), weights
        raise Refused("order_missing")


def real_site(site: SiteFolder, coordinator: Ed25519PublicKey | None = None) -> AuditedSite:
    """Return a hospital's site for an audit, by an auditor with read access to its folder.

    Args:
        site: The folder.
        coordinator: Who may order training: the auditor's own copy of the key, or else the one in `site.toml`, which
            proves less, because who wrote the site's answers may have written that file too.

    Raises:
        SiteError: `population_missing`; later, of the images, as `hospital_of`.
    """

    def pinned(fingerprint: str) -> Images:
        return _all_of(site.settings.name, pinned_store(site.store, fingerprint))

    server = site.settings.server
    if coordinator is None and server is not None and server.coordinator_key is not None:
        coordinator = public_key(server.coordinator_key)
    return AuditedSite(site.settings.name, site.ledger, site.population, coordinator, pinned, lambda: hospital_of(site))


def simulated_site(config: RunConfig, job_id: str, name: str, *, nodes: int = _NODES) -> AuditedSite:
    """Return one site of a simulated private run for an audit; `recorded_run` has its configuration and names.

    Args:
        config: Of the run, with its `data` and `cache`.
        job_id: The run.
        name: The site.
        nodes: How many hospitals the phantoms were drawn for, where the configuration does not say.

    Raises:
        SiteError: `site_unknown`.
        InputError: the images cannot be used.
    """
    found = {hospital.name: hospital for hospital in simulated_hospitals(config, nodes=nodes)}
    if name not in found:
        raise SiteError("site_unknown", f"The run has no site of that name. It has: {', '.join(sorted(found))}.")
    hospital = found[name]

    def current() -> Images:
        return hospital, hospital.store()

    def pinned(fingerprint: str) -> Images:
        images = current()
        if images[1].fingerprint != fingerprint:
            raise Refused("generation_gone")
        return images

    coordinator = simulation_key(config.seed).public_key()
    ledger = simulated_ledger(config, job_id, name)
    return AuditedSite(name, ledger, simulated_population(config, hospital), coordinator, pinned, current)


class RecordedRun(BaseModel):
    """What `results.json` of a run folder says of a simulation."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a schema of the server's, which has much more

    job_id: Name
    sites: dict[Name, Any]
    config: Annotated[dict[str, Scalar], Field(max_length=200)]

    def run_config(self, *, data: str = "", cache: str = "") -> RunConfig:
        """Return the configuration; its folders are not in a run folder, so they are given.

        Raises:
            RunConfigError: `run_config`.
        """
        config = read_run_config({**self.config, "data": data, **({"cache": cache} if cache else {})})
        hospitals = config.phantom_hospitals or len(self.sites)  # one for each node of that run
        return config.model_copy(update={"phantom_hospitals": hospitals})


def recorded_run(folder: Path) -> RecordedRun:
    """Read a run folder; RunConfigError `run_unreadable`."""
    try:
        return RecordedRun.model_validate_json((folder / _RESULTS).read_bytes())
    except (OSError, ValidationError):
        raise RunConfigError("run_unreadable", f"No readable {_RESULTS} there: give the folder of a run.") from None


def kept_order(kept: Reservations, binding: Binding) -> tuple[SignedPlan, Weights]:
    """Return the order that a reservation is bound to.

    Raises:
        Refused: `order_missing`, `order_damaged`; `order_changed` where it is another plan, or other weights.
    """
    signed, weights = unpack_order(kept.order_of(binding))
    if (signed.sha256, weights_sha256(weights)) != (binding.plan_sha256, binding.weights_sha256):
        raise Refused("order_changed")
    return signed, weights


def plan_of(signed: SignedPlan) -> RoundPlan:
    """Return the plan, whoever signed it; Refused `plan_malformed`."""
    try:
        return RoundPlan.model_validate_json(signed.document)
    except ValidationError:
        raise Refused("plan_malformed") from None


def _all_of(name: str, store: Store) -> Images:
    """Return a store's images as the hospital that trains on all of them, as `client.hospital.hospital_of` does."""
    rows = np.arange(len(store))
    return Hospital(name, "train", store.path, rows, Budget(), conventions=None, seed=0), store
