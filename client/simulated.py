"""Hospitals of a simulation: the i-th node owns the i-th hospital of the run configuration's data.

A simulated site trains without differential privacy where the run does not ask for it, releases its figures and
shows sample pictures, because its data is synthetic or public; its policy says so. Every job has ledgers of its own,
with the budget of the configuration. Real hospitals are set up by `multimix-site`.
"""

from functools import partial
from pathlib import Path

from client.books import Books
from client.policy import SitePolicy
from client.population import PopulationSettings
from client.site import LocalSite
from multimix.contract.messages import RoundPlan
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import simulation_key
from multimix.data.hospitals import Hospital
from multimix.data.sampling import patients
from multimix.data.simulation import hospitals_of_nodes
from multimix.privacy.ledger import FILE, create_ledger

SIMULATION_POLICY = SitePolicy(
    allow_non_private=True,
    minimum_cohort=1,
    pictures=64,
    release_evaluation=True,
    maximum_width=128,
    maximum_images_per_group=4096,
    maximum_clip_norm=1e6,
    minimum_noise_multiplier=0.05,
    minimum_expected_patients=1.0,
)


def simulated_site(config: RunConfig, *, partition: int, nodes: int) -> LocalSite:
    """Return the site of one node; RunConfigError unless there is one hospital for each node."""
    hospital = hospitals_of_nodes(config, nodes)[partition]
    return LocalSite(
        hospital=hospital,
        policy=SIMULATION_POLICY,
        coordinator=simulation_key(config.seed).public_key(),
        device=config.device,
        synthetic=not config.data,
        books_of=partial(simulated_books, config, hospital) if config.patient_level else None,
    )


def simulated_books(config: RunConfig, hospital: Hospital, plan: RoundPlan) -> Books:
    """Return the books of a simulated hospital for one job, begun on first use."""
    population = simulated_population(config, hospital)
    folder = simulated_ledger(config, plan.job_id, hospital.name)
    if not (folder / FILE).exists():
        create_ledger(folder, site=hospital.name, population=population.name)
    seed = str(config.seed) if config.dp_seeded else None
    return Books(folder, hospital.name, population, seed=seed)


def simulated_population(config: RunConfig, hospital: Hospital) -> PopulationSettings:
    """Return the budget of a simulated hospital: it declares the patients that it has."""
    store = hospital.store()
    budget = config.dp_budget or config.dp_epsilon
    return PopulationSettings(
        declared_patients=max(2, patients(store, hospital.evaluation_rows(store, "train"))),
        images_per_patient=config.dp_images_per_patient,
        epsilon_per_run=budget,
        epsilon_lifetime=budget,
        delta=config.dp_delta or None,
    )


def simulated_ledger(config: RunConfig, job_id: str, site: str) -> Path:
    """Return the folder of a simulated site's ledger."""
    return Path(config.cache) / "ledgers" / job_id / site
