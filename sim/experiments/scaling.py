"""How long a round takes and how much memory, from ten simulated sites to a thousand.

A run is a program of its own, so that its memory is its own. Memory is the proportional set size (PSS) of the program
and all that it started: a page that several processes share is counted once.
"""

import os
import statistics
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from multimix.config import Frozen
from multimix.contract.run_config import RunConfig
from multimix.errors import InputError
from multimix.processes import descendants, installed, start, stop
from server.results import read_results

Engine = Literal["in-process", "ray"]
_COMMANDS: Final[dict[Engine, str]] = {"in-process": "run", "ray": "flower"}
_LOOK_S: Final = 0.5
_FIRST_LEFT_OUT: Final = 1  # round: what is imported and opened once
_KIB_MIB: Final = 1024


class Scaling(Frozen):
    """What a run of many sites took."""

    sites: int
    round_s: float  # median over rounds but the first
    sites_s: float  # of it, training and validating at the sites
    peak_mib: float


def measure(config: RunConfig, engine: Engine, folder: Path) -> Scaling:
    """Run a configuration as a program and return what it took.

    Raises:
        InputError: `scaling_failed` where it ended early; its log is beside the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "run"
    changed = {key: value for key, value in config.flat().items() if value != RunConfig().flat()[key] and key != "out"}
    options = [part for key, value in changed.items() for part in ("-c", f"{key}={value}")]
    command = [installed("multimix-sim"), _COMMANDS[engine], "--out", str(out), *options]
    log = folder / "log.txt"
    with log.open("wb") as file, _watched(command, file.fileno()) as (process, peak):
        code = process.wait()
    if code:
        raise InputError("scaling_failed", f"The run of {config.dirichlet_sites} sites ended with {code}: see {log}.")
    rounds = read_results(out).rounds[_FIRST_LEFT_OUT:]
    return Scaling(
        sites=config.dirichlet_sites,
        round_s=statistics.median(each.seconds for each in rounds),
        sites_s=statistics.median(each.parts["sites"] for each in rounds),
        peak_mib=peak[0] / _KIB_MIB,
    )


@contextmanager
def _watched(command: Sequence[str], log: int) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """Start a program; yield it and the most memory (KiB) that it and what it started took at once, so far."""
    peak, over = [0], threading.Event()
    with os.fdopen(os.dup(log), "wb") as file:
        process = start(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path.cwd(), log=file)

    def watch() -> None:
        while not over.wait(_LOOK_S):
            peak[0] = max(peak[0], sum(map(_pss_kib, (process.pid, *descendants(process.pid)))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield process, peak
    finally:
        over.set()
        watcher.join()
        stop(process)


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
