"""A plain Flower app on real SuperNodes, as Flower's documentation shows it: what ours is compared with.

FedAvg, train then evaluate, torch imported by the ClientApp; SuperLink and SuperNodes with their own settings, TLS and
node authentication as in a federation of ours. It computes nothing, so its whole round is overhead.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.connector import command, open_connector
from multimix.processes import environment, installed
from server.nodes import is_running, list_nodes, synchronise
from server.provision.folder import FederationFolder
from server.running import CONNECTION, superlink_command, write_connection
from tests.connected_sites import again, federation, joined
from tests.deployment.federation import wait_for as wait

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
floats = 1000
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
    arrays = ArrayRecord([np.zeros(context.run_config["floats"], np.float32)])
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=context.run_config["rounds"])
    Path(context.run_config["out"]).write_text(json.dumps([*strategy.times, time.time()]))
"""


@contextmanager
def plain_flower(base: Path, sites: tuple[str, ...]) -> Iterator["PlainFlower"]:
    """Run SuperLink and SuperNodes, and yield what runs the app on them."""
    base.mkdir()
    folder = federation(base / "federation")
    joined_sites = [joined(folder, base / name) for name in sites]
    folder = again(folder)
    with _processes(folder, joined_sites) as pids:
        write_connection(folder)
        yield PlainFlower(folder, _plain_app(base / "app"), base, pids)


@dataclass(frozen=True)
class PlainFlower:
    """A federation that runs the plain app."""

    folder: FederationFolder
    app: Path
    base: Path
    pids: tuple[int, ...]  # of the SuperLink and the SuperNodes

    def run(self, *, rounds: int, floats: int = 1000) -> list[float]:
        """Run the app on weights of so many floats; return when each round began and the last one ended, in s."""
        times = self.base / _TIMES
        times.unlink(missing_ok=True)
        config = ("-c", f'out="{times}"', "-c", f"rounds={rounds}", "-c", f"floats={floats}")
        subprocess.run(
            [installed("flwr"), "run", str(self.app), CONNECTION, "--stream", *config],
            env=_flowers_own(self.folder.flower),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=900,
        )
        written = wait("the plain app has ended", lambda: times.exists() and times.read_text())
        return list(json.loads(str(written)))


def _plain_app(path: Path) -> Path:
    (path / "plain").mkdir(parents=True)
    (path / "pyproject.toml").write_text(_PROJECT)
    (path / "plain" / "client.py").write_text(_CLIENT)
    (path / "plain" / "server.py").write_text(_SERVER)
    (path / "plain" / "__init__.py").touch()
    return path


@contextmanager
def _processes(folder: FederationFolder, sites: list[Path]) -> Iterator[tuple[int, ...]]:
    """Run SuperLink and SuperNodes as Flower's documentation says, with the certificates and keys of a federation."""
    words = superlink_command(folder)
    at = words.index("--database")
    superlink = [*words[:at], *words[at + 2 :]]
    with ExitStack() as stack:
        pids = [stack.enter_context(_process(superlink, folder.flower))]
        wait("the SuperLink is up", lambda: is_running(folder))
        synchronise(folder)
        for site in sites:
            connector = open_connector(site / "connector", site / "none.sock", polling="flower")
            home = site / "home"
            home.mkdir()
            pids.append(stack.enter_context(_process(command(connector), home)))
        wait("the SuperNodes are connected", lambda: sum(node.online for node in list_nodes(folder)) == len(sites))
        yield tuple(pids)


@contextmanager
def _process(words: list[str], home: Path) -> Iterator[int]:
    with (home / "process.log").open("wb") as log:
        process = subprocess.Popen(words, env=_flowers_own(home), cwd=home, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process.pid
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
