"""The Flower ServerApp: reads the run configuration and runs one job over Flower's grid.

With `MULTIMIX_FEDERATION` in its environment, as `multimix-server start` sets it, the sites are real: who they are, the
key that signs and the run folder are the federation's. Without it the run is a simulation.
"""

import os
from pathlib import Path

import httpx
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from multimix.contract.run_config import RunConfig, read_run_config
from multimix.contract.signing import simulation_key
from multimix.data.licences import licences_by_source
from multimix.data.simulation import hospitals_of_nodes
from multimix.errors import InputError
from server.federation import connected_nodes
from server.folders import new_run_folder
from server.job import Job, Licences, run_job
from server.log import log, show_progress
from server.production import FEDERATION, check_production, production_of
from server.provision.folder import open_federation

app = ServerApp()


class StoppedError(Exception):
    """The run cannot go on; why was said. Flower then ends it at once: after SystemExit it waits for heartbeats."""


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run configuration describes."""
    show_progress()
    try:
        config, federation = read_run_config(context.run_config), os.environ.get(FEDERATION)
        job = production_job(config, Path(federation)) if federation else _simulation(grid, config)
        log.info("run folder: %s", job.folder)
        results = run_job(grid, job)
    except InputError as error:
        log.error("stopped (%s): %s", error.reason, error)
        raise StoppedError(error.reason) from None
    except httpx.HTTPError:
        log.error("stopped (superlink_lost): the SuperLink cannot be reached. Resume the run when it is back.")
        raise StoppedError("superlink_lost") from None
    log.info("%s: %s", results.status, job.folder / "report.html")


def production_job(config: RunConfig, path: Path) -> Job:
    """Return the job of a federation; its run folder lies with the others, under the name in `out` or a new one.

    Raises:
        InputError: as `open_federation`, `signing_key` and `check_production`.
    """
    check_production(config)
    folder = open_federation(path)
    run = folder.runs / (config.out or new_run_folder().name)
    return Job(config, run.absolute(), folder.signing_key(), {}, production_of(folder))


def _simulation(grid: Grid, config: RunConfig) -> Job:
    """Return a simulation's job; mistakes in the data are told here, to the person who made them, not at the sites."""
    nodes = connected_nodes(grid, at_least=config.quorum, deadline_s=config.deadline_s)
    if not nodes:
        raise InputError(
            "quorum", f"No node is connected after {config.deadline_s:g} s (deadline-s): connect the sites."
        )
    hospitals_of_nodes(config, len(nodes))
    return new_job(config)


def new_job(config: RunConfig) -> Job:
    """Return a job with its run folder; a simulation's key and licences follow from the configuration."""
    folder = Path(config.out) if config.out else new_run_folder()
    return Job(config, folder.absolute(), simulation_key(config.seed), _licences(config))


def _licences(config: RunConfig) -> Licences:
    if not config.data:
        return {}
    return licences_by_source(Path(config.data), config.site_column)
