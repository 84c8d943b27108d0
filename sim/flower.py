"""Runs `flwr run .` with Flower's simulation engine (Ray) and cleans up after it.

Bare `flwr run .` works too; it leaves a local SuperLink daemon running. Here a SuperLink of our own is started on a
free port with a FLWR_HOME of its own, and stopped by its process id.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx

from multimix.contract.run_config import RunConfig, Scalar
from multimix.errors import InputError
from multimix.processes import free_port, installed, start, stop
from multimix.training import resolve_device
from server.production import FEDERATION
from server.runs import APP_ROOT, finished_since, toml

_START_S = 60.0
_FAILED = 1

_CONNECTION = """[superlink]
default = "simulation"

[superlink.simulation]
address = "127.0.0.1:{port}"
insecure = true
"""


def run_in_flower(config: RunConfig, *, nodes: int, changed: Mapping[str, Scalar]) -> int:
    """Run the app at this checkout's root with Flower and stream its log; return the exit code of the run.

    `changed` are the run configuration keys that differ from the defaults in pyproject.toml.

    Raises:
        InputError: `app_root` when this installation has no pyproject.toml beside it, `superlink` when Flower
        does not start.
    """
    if not (APP_ROOT / "pyproject.toml").exists():
        raise InputError("app_root", f"{APP_ROOT} holds no Flower app: run this from a checkout of the repository.")
    processors, began = os.cpu_count() or 1, datetime.now(UTC)
    # Ray hides the GPU from actors that ask for none; with one, all actors share it.
    gpus = 1.0 / processors if resolve_device(config.device).type == "cuda" else 0.0
    simulation = (
        f"num-supernodes={nodes} client-resources-num-cpus=1 client-resources-num-gpus={gpus} "
        f"init-args-num-cpus={processors} init-args-log-to-driver=true"
    )
    with tempfile.TemporaryDirectory(prefix="multimix-flower-") as home, superlink(Path(home)) as environment:
        started = subprocess.run(
            [
                *(installed("flwr"), "run", str(APP_ROOT), "simulation", "--stream"),
                *("--federation-config", simulation),
                *(argument for key, value in changed.items() for argument in ("-c", f"{key}={toml(value)}")),
            ],
            cwd=APP_ROOT,
            env=environment,
            check=False,
        )
    if started.returncode:
        return started.returncode
    return 0 if finished_since(Path(config.out), began) else _FAILED


@contextmanager
def superlink(home: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink in simulation mode; yield the environment for `flwr`, and stop it again."""
    port, control = free_port(), free_port()
    (home / "config.toml").write_text(_CONNECTION.format(port=port))
    environment = {
        **{name: value for name, value in os.environ.items() if name != FEDERATION},  # with it the sites were real
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    log_file = home / "superlink.log"
    with log_file.open("wb") as log:
        process = start(
            [
                *(installed("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"),
                *("--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)),
                *("--control-api-address", f"127.0.0.1:{control}"),
            ],
            env=environment,
            cwd=APP_ROOT,
            log=log,
        )
    try:
        _wait_until_ready(process, port, log_file)
        yield environment
    finally:
        stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1.0).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    tail = log_file.read_text(errors="replace")[-600:]
    raise InputError("superlink", f"Flower's SuperLink did not start within {_START_S:.0f} s. Its log ends: {tail}")
