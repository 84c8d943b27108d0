"""A simulation in this process: the server's job over the client's apps, without Flower's engine."""

from client.simulated import simulated_hospitals
from multimix.contract.run_config import RunConfig
from multimix.data.hospitals import Hospital
from server.app import new_job
from server.job import run_job
from server.results import Results
from sim.grid import InProcessGrid

PHANTOM_HOSPITALS = 4


def hospitals_of(config: RunConfig) -> tuple[Hospital, ...]:
    """Return the hospitals of a configuration, decoding their images if that was not done; raises InputError."""
    return simulated_hospitals(config, nodes=config.phantom_hospitals or PHANTOM_HOSPITALS)


def simulate(config: RunConfig, *, workers: int = 1) -> Results:
    """Run a job in process and return its results; the run folder holds everything."""
    nodes = len(hospitals_of(config))
    job = new_job(config)
    with InProcessGrid(config.flat(), nodes=nodes, workers=workers) as grid:
        return run_job(grid, job)
