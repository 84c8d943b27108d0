"""A simulation in this process: the server's job over the client's apps, without Flower's engine."""

from pathlib import Path

from multimix.contract.run_config import RunConfig
from multimix.data.cache import Progress
from multimix.data.hospitals import Hospital
from multimix.data.simulation import simulated_hospitals
from multimix.training import resolve_device
from server.app import new_job
from server.job import run_job
from server.log import log
from server.results import Results
from sim.grid import InProcessGrid

PHANTOM_HOSPITALS = 4


def hospitals_of(config: RunConfig, *, progress: Progress | None = None) -> tuple[Hospital, ...]:
    """Return the hospitals of a configuration, decoding their images if that was not done; raises InputError."""
    return simulated_hospitals(config, nodes=config.phantom_hospitals or PHANTOM_HOSPITALS, progress=progress)


def simulate(config: RunConfig, *, workers: int = 1) -> tuple[Results, Path]:
    """Run a job in process; return its results and the run folder, which holds everything."""
    resolve_device(config.device)
    nodes = len(hospitals_of(config))
    job = new_job(config)
    log.info("run folder: %s", job.folder)
    with InProcessGrid(config.flat(), nodes=nodes, workers=workers) as grid:
        return run_job(grid, job), job.folder
