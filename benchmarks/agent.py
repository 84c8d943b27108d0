"""The agent: what a round costs more through the socket than in process, and its memory for a model of 1 GB."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.agent.remote import RemoteSite
    from client.site import LocalSite
    from multimix.contract.messages import Weights
    from multimix.contract.signing import SignedPlan
    from multimix.contract.site import Trained

SIZE = 128
STEPS = 10
ROUNDS = 6
GIB = 1 << 30
_ARRAYS = 64  # of 16 MiB


def agent_overhead_fraction() -> float:
    """Return how much longer a round at 128 px takes through the agent's socket than in process, as a share.

    Both are processes of one torch thread that train the same rounds on the same phantoms, by turns; the quickest of
    each are compared, which another load on the machine disturbs least. The model is the default one, 16 wide; the
    policy is a simulation's, so nothing is spent.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _process("serve", folder):
            here, there = [], []
            site, remote = phantom_site(folder), _remote(folder)
            for number in range(1, ROUNDS + 2):
                signed, weights = _round(number)
                for seconds, asked in ((here, site), (there, remote)):
                    started = time.perf_counter()
                    asked.train(signed, weights)
                    seconds.append(time.perf_counter() - started)
    return min(there[1:]) / min(here[1:]) - 1.0  # the first round warms both up


def agent_memory_ratio_1gb() -> float:
    """Return by how much 1 GiB of weights, there and back, raises the agent's peak memory, over 1 GiB.

    The site behind the agent sends back what it got, so this is what the agent itself needs.
    """
    import numpy as np

    from multimix.config import preset
    from multimix.contract.messages import LocalWork, RoundPlan, weights_sha256
    from multimix.contract.signing import sign, simulation_key

    random = np.random.default_rng(0)
    weights = {f"encoder.{n}": random.random(GIB // _ARRAYS // 4, np.float32) for n in range(_ARRAYS)}
    plan = RoundPlan(
        job_id="large",
        round=1,
        kind="train",
        seed=0,
        method=preset("modern", image_size=SIZE),
        work=LocalWork(steps=1, images_per_group=1),
        weights_sha256=weights_sha256(weights),
    )
    with tempfile.TemporaryDirectory() as folder, _process("echo", Path(folder)) as process:
        idle = _peak_bytes(process.pid)
        trained = _remote(Path(folder)).train(sign(plan, simulation_key(0)), weights)
        peak = _peak_bytes(process.pid)
    if weights_sha256(trained.weights) != plan.weights_sha256:
        raise RuntimeError("other weights came back")
    return (peak - idle) / GIB


def figures() -> dict[str, float]:
    """Return all figures of the agent."""
    return {
        "agent_overhead_fraction": agent_overhead_fraction(),
        "agent_memory_ratio_1gb": agent_memory_ratio_1gb(),
    }


@contextmanager
def _process(what: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent as a process; ready when this yields."""
    command = [sys.executable, "-m", "benchmarks.agent", what, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the agent did not start")
            yield process
        finally:
            process.terminate()


def _remote(folder: Path) -> "RemoteSite":
    from client.agent.remote import RemoteSite

    return RemoteSite(folder / "socket" / "agent.sock")


def _peak_bytes(process: int) -> int:
    """Return a process's peak resident memory: VmHWM of proc(5), in KiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _round(number: int) -> "tuple[SignedPlan, Weights]":
    from multimix.config import preset
    from multimix.contract.messages import LocalWork, RoundPlan, weights_sha256
    from multimix.contract.signing import sign, simulation_key
    from multimix.network import new_network
    from multimix.weights import export

    method = preset("modern", image_size=SIZE)
    weights = export(new_network(method.network, number))
    plan = RoundPlan(
        job_id="overhead",
        round=number,
        kind="train",
        seed=0,
        method=method,
        work=LocalWork(steps=STEPS, images_per_group=4, total_steps=1000),
        minimum_class_patients=1,
        weights_sha256=weights_sha256(weights),
    )
    return sign(plan, simulation_key(0)), weights


def phantom_site(folder: Path) -> "LocalSite":
    """Return a hospital of phantoms at 128 px that trains with one thread."""
    import torch

    from client.simulated import simulated_site
    from multimix.contract.run_config import RunConfig

    torch.set_num_threads(1)
    cache = str(folder / "cache")
    config = RunConfig(phantom_hospitals=1, phantom_patients=60, image_size=SIZE, cache=cache, device="cpu")
    site = simulated_site(config, partition=0, nodes=1)
    site.describe()
    return site


class _Echo:
    """Sends back what it got."""

    def train(
        self, signed: "SignedPlan", weights: "Weights", *, progress: "Callable[[int], None] | None" = None
    ) -> "Trained":
        """Answer with the same weights."""
        import json

        from multimix.contract.messages import TrainReport
        from multimix.contract.site import Trained

        plan = json.loads(signed.document)
        if progress:
            progress(1)
        report = TrainReport(
            site="echo",
            job_id=plan["job_id"],
            round=plan["round"],
            plan_sha256=signed.sha256,
            weights_sha256=plan["weights_sha256"],
            steps=1,
            teachers={},
            losses={},
        )
        return Trained(report, weights)


def _serve(what: str, folder: Path) -> None:
    """Be the agent, until told to stop."""
    from client.agent.activity import ActivityLog
    from client.agent.control import Control
    from client.agent.metrics import Metrics
    from client.agent.orders import Orders
    from client.agent.process import serve, set_threads
    from client.agent.service import AgentService, Records, Served
    from client.policy import SitePolicy
    from multimix.contract.signing import simulation_key

    site = _Echo() if what == "echo" else phantom_site(folder)
    served = Served(site, simulation_key(0).public_key(), SitePolicy(), 2 * GIB)
    records = Records(ActivityLog(folder), Metrics(folder / "metrics.prom"))
    orders = Orders(began=records.began, ended=records.ended, prepare=lambda: set_threads(1))
    service = AgentService(lambda: served, Control, orders, records)
    serve(service, orders, folder / "socket" / "agent.sock", ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
