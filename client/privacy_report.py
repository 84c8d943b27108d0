"""What a site's ledger says in figures: the DP statement, the budget, and how many more rounds fit.

Everything is priced anew from the entries. Reading takes no lock, so the site may train meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from client.population import PopulationSettings
from client.settings import SiteFolder
from multimix.errors import Refused
from multimix.privacy.accountant import History, Mechanism, affordable_steps, price, versions
from multimix.privacy.entries import Entry
from multimix.privacy.history import history_of, mechanism_of, reservations
from multimix.privacy.ledger import Ledger, read_ledger
from multimix.privacy.statement import build_statement
from multimix.privacy.statement_records import Statement

_MOST_ROUNDS: Final = 10_000  # of a forecast
_MOST_STEPS: Final = 2_000_000  # that the accountants price


@dataclass(frozen=True)
class RoundKind:
    """A round as it costs: noise multiplier, sampling rate and steps."""

    noise_multiplier: float
    sampling_rate: float
    steps: int

    @property
    def mechanism(self) -> Mechanism:
        """Of each step."""
        return Mechanism(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate)


@dataclass(frozen=True)
class Forecast:
    """How many more rounds of a kind fit before a limit is reached; 10,000 stands for as many or more."""

    kind: RoundKind
    last_run: str | None  # the run that spent last
    rounds_in_last_run: int | None
    rounds_in_a_new_run: int
    rounds_in_the_lifetime: int  # whatever the runs


def ledger_of(site: SiteFolder, *, every_signature: bool = False) -> Ledger:
    """Read and verify the ledger of the site's population.

    Raises:
        SiteError: `population_missing`.
        Refused: as `read_ledger`.
    """
    population = site.population
    return read_ledger(
        site.ledger, site=site.settings.name, population=population.name, every_signature=every_signature
    )


def statement_of(site: SiteFolder, ledger: Ledger, *, job_id: str | None, forecast_rounds: int | None) -> Statement:
    """Return the statement of a run, or of the lifetime, from the ledger and what `site.toml` declares.

    Raises:
        SiteError, Refused: as `build_statement`.
    """
    population, server = site.population, site.settings.server
    return build_statement(
        ledger.entries,
        head=ledger.head,
        countersignature=ledger.countersigned(),
        declared_patients=population.declared_patients,
        images_per_patient=population.images_per_patient,
        delta=population.failure_probability,
        delta_reason=population.delta_reason,
        limit_run=population.epsilon_per_run,
        limit_lifetime=population.epsilon_lifetime,
        job_id=job_id,
        forecast_rounds=forecast_rounds,
        accountant_versions=versions(),
        price=price,
        coordinator_key=server.coordinator_key if server else None,
    )


def last_kind(entries: Iterable[Entry]) -> RoundKind | None:
    """Return what the newest reservation reserved; None where there is none."""
    made = reservations(entries)
    if not made:
        return None
    mechanism = mechanism_of(made[-1])
    return RoundKind(mechanism.noise_multiplier, mechanism.sampling_rate, made[-1].steps)


def forecast(entries: tuple[Entry, ...], population: PopulationSettings, kind: RoundKind) -> Forecast:
    """Say before a run starts how far the budget goes; Refused as `affordable_steps`."""
    made = reservations(entries)
    last_run = made[-1].binding.job_id if made else None
    lifetime = rounds_in_the_lifetime(entries, population, kind)
    limit, delta = population.epsilon_per_run, population.failure_probability
    in_a_new_run = _rounds(kind, {}, limit, delta)
    in_last_run = None if last_run is None else _rounds(kind, history_of(entries, last_run), limit, delta)
    return Forecast(
        kind=kind,
        last_run=last_run,
        rounds_in_last_run=None if in_last_run is None else min(in_last_run, lifetime),
        rounds_in_a_new_run=min(in_a_new_run, lifetime),
        rounds_in_the_lifetime=lifetime,
    )


def rounds_in_the_lifetime(entries: tuple[Entry, ...], population: PopulationSettings, kind: RoundKind) -> int:
    """Return how many such rounds fit before the lifetime's limit; Refused as `affordable_steps`."""
    return _rounds(kind, history_of(entries), population.epsilon_lifetime, population.failure_probability)


def forecast_rounds(entries: tuple[Entry, ...], population: PopulationSettings) -> int | None:
    """Return how many rounds of the kind used last fit the lifetime, or None where none can be said."""
    kind = last_kind(entries)
    try:
        return None if kind is None else rounds_in_the_lifetime(entries, population, kind)
    except Refused:
        return None


def _rounds(kind: RoundKind, spent: History, limit_epsilon: float, delta: float) -> int:
    at_most = min(_MOST_ROUNDS * kind.steps, _MOST_STEPS)
    steps = affordable_steps(
        mechanism=kind.mechanism, delta=delta, limit_epsilon=limit_epsilon, spent=spent, at_most=at_most
    )
    return steps // kind.steps
