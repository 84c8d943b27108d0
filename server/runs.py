"""Starting a run at the federation's server, watching it, and taking it up again where it stopped."""

import json
import subprocess
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from multimix.contract.messages import Name
from multimix.contract.run_config import RunConfig, Scalar, read_run_config
from multimix.errors import InputError
from multimix.files import write_atomically
from multimix.locks import held
from multimix.processes import installed
from server.checkpoint import FILE as CHECKPOINT
from server.nodes import is_running, runs_going_on, stop_run
from server.provision.folder import FederationFolder
from server.provision.rotation import check_in_force, utcnow
from server.results import read_results
from server.running import CONNECTION, flower_environment, write_connection

APP_ROOT: Final = Path(__file__).resolve().parent.parent
_COMES_UP_S: Final = 20.0
_NAME: Final = TypeAdapter(Name)
_FAILED: Final = 1
_STOP_S: Final = 30.0
_LOOK_S: Final = 0.5
_LOCK: Final = "run.lock"  # in flower/
_KEPT: Final = "runs"  # folder in flower/ with the configuration of each run


def new_name() -> str:
    """Return a name for a run: the time."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def start_run(folder: FederationFolder, name: str, values: Mapping[str, Scalar], *, app: Path = APP_ROOT) -> int:
    """Start a run, stream its log, and return its exit code: 0 only with results that say finished.

    Raises:
        RunConfigError: a key or value cannot be used.
        InputError: `run_name`, `run_exists`, `run_active`, `superlink_away`, `app_root`, and as `check_in_force`.
    """
    _check(folder, name, app)
    with _one_at_a_time(folder):
        if _kept(folder, name).exists() or (folder.runs / name).exists():
            raise InputError("run_exists", f"There is a run {name}: give another --name, or `resume` it.")
        _refuse_a_second(folder)
        config = read_run_config({**values, "out": name, "resume": False})
        write_atomically(_kept(folder, name), json.dumps(_changed(config)).encode())
        run = _begin(folder, config, app)
    return _exit_code(folder, config, run)


def resume_run(folder: FederationFolder, name: str, *, app: Path = APP_ROOT) -> int:
    """Go on after a run's last round, with the configuration it was started with; returns as `start_run`.

    What is left of it, after a crash, is stopped first.

    Raises:
        InputError: `run_unknown`, `run_active`, `superlink_away`, `app_root`, `run_still_stopping`, and as
            `check_in_force`.
    """
    _check(folder, name, app)
    try:
        values = json.loads(_kept(folder, name).read_bytes())
    except (OSError, ValueError):
        values = _config_of(folder, name)
    with _one_at_a_time(folder):
        stop_named(folder, name)
        _refuse_a_second(folder)
        began = (folder.runs / name / CHECKPOINT).exists()  # else it died before its first round: nothing is kept
        config = read_run_config({**values, "out": name, "resume": began})
        run = _begin(folder, config, app)
    return _exit_code(folder, config, run)


def _one_at_a_time(folder: FederationFolder) -> AbstractContextManager[None]:
    """Hold the place of who starts a run, from the look at what goes on until the new one is seen there."""
    busy = InputError("run_active", "Another command starts a run here now. Wait, and see multimix-server status.")
    return held(folder.flower / _LOCK, busy=busy)


def _refuse_a_second(folder: FederationFolder) -> None:
    if going_on := runs_going_on(folder):
        raise InputError(
            "run_active",
            f"Run {going_on[0][1]} goes on, and sites do one at a time: multimix-server stop {going_on[0][1]}.",
        )


def stop_named(folder: FederationFolder, name: str) -> bool:
    """Stop a run, wait until it has stopped, and say whether it went on.

    Raises:
        InputError: `run_still_stopping`, `superlink_away`.
    """
    numbers = [number for number, out in runs_going_on(folder) if out == name]
    for number in numbers:
        stop_run(folder, number)
    deadline = time.monotonic() + _STOP_S
    while numbers and any(out == name for _, out in runs_going_on(folder)):
        if time.monotonic() > deadline:
            raise InputError("run_still_stopping", f"Run {name} does not stop. Stop the server, and start it again.")
        time.sleep(0.5)
    return bool(numbers)


def await_server(folder: FederationFolder) -> None:
    """Wait a little for a server that was started a moment ago, or is starting again; what comes next says if it is."""
    deadline = time.monotonic() + _COMES_UP_S
    while not is_running(folder) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _check(folder: FederationFolder, name: str, app: Path) -> None:
    try:
        _NAME.validate_python(name)
    except ValidationError:
        raise InputError(
            "run_name", "A run's name is 1 to 64 letters, digits, . _ - and a letter or digit first. Give another."
        ) from None
    if not (app / "pyproject.toml").exists():
        raise InputError("app_root", f"{app} holds no Flower app: give a checkout of the repository with --app.")
    if not is_running(folder):
        check_in_force(folder, utcnow())  # else it seems to be away
        raise InputError(
            "superlink_away", "The federation's server does not answer here. Start it: multimix-server start."
        )


@dataclass(frozen=True)
class _Run:
    """A run that began, and the command that shows its log and ends with it."""

    began: datetime
    command: subprocess.Popen[bytes]


def _begin(folder: FederationFolder, config: RunConfig, app: Path) -> _Run:
    """Start a run; return once the SuperLink knows it, or the command has ended."""
    write_connection(folder)
    arguments = [argument for key, value in _changed(config).items() for argument in ("-c", f"{key}={toml(value)}")]
    words = [installed("flwr"), "run", str(app), CONNECTION, "--stream", *arguments]
    run = _Run(datetime.now(UTC), subprocess.Popen(words, cwd=app, env=flower_environment(folder)))
    try:
        while run.command.poll() is None and config.out not in {out for _, out in runs_going_on(folder)}:
            time.sleep(_LOOK_S)
    except BaseException:
        _end(run)
        raise
    return run


def _exit_code(folder: FederationFolder, config: RunConfig, run: _Run) -> int:
    try:
        code = run.command.wait()
    finally:
        _end(run)
    if code:
        return code
    return 0 if finished_since(folder.runs / config.out, run.began) else _FAILED


def _end(run: _Run) -> None:
    """End the command; the run goes on at the server."""
    if run.command.poll() is None:
        run.command.terminate()
        run.command.wait()


def finished_since(run: Path, began: datetime) -> bool:
    """Tell whether a run that began then, not one before it, brought the results in the folder."""
    try:
        results = read_results(run)
    except InputError:
        return False
    return results.status == "finished" and results.finished is not None and results.finished >= began


def toml(value: Scalar) -> str:
    """Write a value as Flower's command line reads it."""
    return json.dumps(value, ensure_ascii=False)


def _changed(config: RunConfig) -> dict[str, Scalar]:
    """Return the keys that differ from the defaults in pyproject.toml: all that has to be said."""
    default = RunConfig().flat()
    return {key: value for key, value in config.flat().items() if value != default[key]}


def _kept(folder: FederationFolder, name: str) -> Path:
    return folder.flower / _KEPT / f"{name}.json"


def _config_of(folder: FederationFolder, name: str) -> dict[str, Scalar]:
    try:
        return dict(read_results(folder.runs / name).config)
    except InputError:
        raise InputError("run_unknown", f"No run {name} was started here. The folders in runs/ name them.") from None
