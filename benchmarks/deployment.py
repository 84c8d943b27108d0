"""What a round costs beyond compute, with real processes, TLS and node authentication: ours, and a plain Flower app.

Two sites on this machine's loopback. The plain app is what Flower's documentation shows: FedAvg, train then evaluate,
torch imported by the ClientApp, SuperLink and SuperNodes with their own settings. It computes nothing, so its whole
round is overhead. Of ours the seconds that the slower site spent on its order are taken off.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from client.connector import command, open_connector
from multimix.processes import environment, installed
from server.nodes import is_running, list_nodes, synchronise
from server.provision.folder import FederationFolder
from server.running import CONNECTION, superlink_command, write_connection
from tests.connected_sites import again, federation, joined
from tests.deployment.federation import QUICK, Deployment, deployment
from tests.deployment.federation import wait_for as wait

ROUNDS = 6
_FIRST_LEFT_OUT = 1  # round: what is imported, priced and compiled once
SITES = ("phantom-a", "phantom-b")
_TIMES = "times.json"

_PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "benchmark"
fab-include = ["plain/*.py"]
[tool.flwr.app.components]
serverapp = "plain.server:app"
clientapp = "plain.client:app"
[tool.flwr.app.config]
out = ""
rounds = 3
"""

_CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    state = message.content["arrays"].to_torch_state_dict()
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 1, "loss": float(torch.zeros(1))})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""

_SERVER = """
import json, time
from pathlib import Path
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

class Timed(FedAvg):
    times = []
    def configure_train(self, *arguments, **options):
        self.times.append(time.time())
        return super().configure_train(*arguments, **options)

@app.main()
def main(grid, context):
    strategy = Timed()
    arrays = ArrayRecord([np.zeros(1000, np.float32)])
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=context.run_config["rounds"])
    Path(context.run_config["out"]).write_text(json.dumps([*strategy.times, time.time()]))
"""


def round_overhead_plain_flower_s(base: Path) -> float:
    """Return the median seconds of a round of the plain app."""
    base.mkdir()
    folder = federation(base / "federation")
    sites = [joined(folder, base / name) for name in SITES]
    folder = again(folder)
    app, times = _plain_app(base / "app"), base / _TIMES
    env = _flowers_own(folder.flower)
    with _plain_flower(folder, sites):
        write_connection(folder)
        config = ("-c", f'out="{times}"', "-c", f"rounds={ROUNDS}")
        subprocess.run([installed("flwr"), "run", str(app), CONNECTION, "--stream", *config],
                       env=env, check=True, stdout=subprocess.DEVNULL, timeout=600)  # fmt: skip
        began = json.loads(wait("the plain app has ended", lambda: times.exists() and times.read_text()))  # type: ignore[arg-type]
    rounds = [after - before for before, after in pairwise(began)]
    return statistics.median(rounds[_FIRST_LEFT_OUT:])


def round_overhead_s(base: Path) -> float:
    """Return the median seconds of a round of ours, through agents, less what the slower site spent on its order."""
    base.mkdir()
    with deployment(base, SITES, private=False) as made:
        made.start_all()
        made.run_job("overhead", *QUICK, f"rounds={ROUNDS}", "pictures=0")
        return statistics.median(_overheads(made)[_FIRST_LEFT_OUT:])


def _overheads(made: Deployment) -> list[float]:
    spent: dict[int, float] = {}
    for site in made.sites:
        for line in (made.site_folder(site) / "activity.jsonl").read_text().splitlines():
            order = json.loads(line)
            if order["kind"] == "train":
                spent[order["round"]] = max(spent.get(order["round"], 0.0), order["seconds"])
    rounds = made.results("overhead")["rounds"]
    return [each["seconds"] - spent[each["round"]] for each in rounds]  # type: ignore[attr-defined]


def _plain_app(path: Path) -> Path:
    (path / "plain").mkdir(parents=True)
    (path / "pyproject.toml").write_text(_PROJECT)
    (path / "plain" / "client.py").write_text(_CLIENT)
    (path / "plain" / "server.py").write_text(_SERVER)
    (path / "plain" / "__init__.py").touch()
    return path


@contextmanager
def _plain_flower(folder: FederationFolder, sites: list[Path]) -> Iterator[None]:
    """Run SuperLink and SuperNodes as Flower's documentation says, with the certificates and keys of a federation."""
    words = superlink_command(folder)
    at = words.index("--database")
    superlink = [*words[:at], *words[at + 2 :]]
    with ExitStack() as stack:
        stack.enter_context(_process(superlink, folder.flower))
        wait("the SuperLink is up", lambda: is_running(folder))
        synchronise(folder)
        for site in sites:
            connector = open_connector(site / "connector", site / "none.sock", polling="flower")
            home = site / "home"
            home.mkdir()
            stack.enter_context(_process(command(connector), home))
        wait("the SuperNodes are connected", lambda: sum(node.online for node in list_nodes(folder)) == len(sites))
        yield


@contextmanager
def _process(words: list[str], home: Path) -> Iterator[None]:
    with (home / "process.log").open("wb") as log:
        process = subprocess.Popen(words, env=_flowers_own(home), cwd=home, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _flowers_own(home: Path) -> dict[str, str]:
    """Return an environment with Flower's own settings, but for what would call home or install."""
    return environment(
        HOME=str(home),
        FLWR_HOME=str(home),
        OMP_NUM_THREADS="1",
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    )


def figures() -> dict[str, float]:
    """Return both, measured one after the other, and how busy the machine was with other things before."""
    with tempfile.TemporaryDirectory() as folder:
        load = os.getloadavg()[0]
        began = time.perf_counter()
        ours = round_overhead_s(Path(folder) / "ours")
        plain = round_overhead_plain_flower_s(Path(folder) / "plain")
        return {
            "round_overhead_s": ours,
            "round_overhead_plain_flower_s": plain,
            "round_overhead_load_before": load,
            "round_overhead_benchmark_s": time.perf_counter() - began,
        }
