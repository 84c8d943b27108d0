"""`multimix-server start | run | resume | stop | status | proxy`: the federation's server and its runs."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from multimix.contract.run_config import Scalar
from multimix.errors import InputError
from multimix.files import write_atomically
from multimix.processes import stop_signals
from server.log import show_progress
from server.provision.folder import FederationFolder, open_federation
from server.provision.options import HERE, FederationOption, JsonOption, at_home, explained, say, show

_FAILED = 1
_NOT_RUNNING = 3
NameArgument = Annotated[str, typer.Argument(help="The run's name: its folder in runs/ of the federation.")]
AppOption = Annotated[Path | None, typer.Option(help="A checkout of the repository; this one unless given.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands: dict[str, Callable[..., None]] = {
        "start": start_command,
        "run": run_command,
        "resume": resume_command,
        "stop": stop_command,
        "status": status_command,
        "proxy": proxy_command,
    }
    for name, command in commands.items():
        app.command(name)(command)


def start_command(
    federation: FederationOption = HERE,
    metrics_port: Annotated[
        int | None, typer.Option(help="Of /health and /metrics, on 127.0.0.1; the server's port + 1 unless given.")
    ] = None,
) -> None:
    """Run the server in the foreground until Ctrl-C or SIGTERM: hospitals connect, runs can be started.

    `admit` and `revoke` take effect within a second, without a restart.

    Exit codes: 0 stopped, 1 the server died, 2 the folder cannot be used, or the server runs already.
    """
    from server.running import serve  # noqa: PLC0415  (flwr)

    with explained(), at_home(), stop_signals() as stopped:
        folder = open_federation(federation)
        show_progress(to_stderr=True)
        code = serve(folder, stopped, metrics_port=metrics_port or folder.settings.bind_port + 1)
    if code and not stopped.is_set():
        raise typer.Exit(_FAILED)


def run_command(
    federation: FederationOption = HERE,
    config: Annotated[
        list[str] | None,
        typer.Option("-c", "--config", help='A run configuration key, as "key=value"; see docs/configuration.md.'),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; the time unless given.")] = None,
    app: AppOption = None,
) -> None:
    """Train a model with the admitted sites, and show the log as it goes. Ctrl-C leaves the run going on.

    Exit codes: 0 finished, 1 it stopped early (its log says why), 2 it could not be started.
    """
    from server.runs import APP_ROOT, await_server, new_name, start_run  # noqa: PLC0415  (flwr)

    with explained(), at_home():
        run = name or new_name()
        folder = open_federation(federation)
        await_server(folder)
        code = _interruptible(lambda: start_run(folder, run, assignments(config or []), app=app or APP_ROOT), run)
    _finish(folder, run, code)


def resume_command(name: NameArgument, federation: FederationOption = HERE, app: AppOption = None) -> None:
    """Go on with a run after its last finished round, as it was started; what is left of it is stopped first.

    Exit codes: 0 finished, 1 it stopped early (its log says why), 2 there is no such run, or it could not be started.
    """
    from server.runs import APP_ROOT, await_server, resume_run  # noqa: PLC0415  (flwr)

    with explained(), at_home():
        folder = open_federation(federation)
        await_server(folder)
        code = _interruptible(lambda: resume_run(folder, name, app=app or APP_ROOT), name)
    _finish(folder, name, code)


def stop_command(name: NameArgument, federation: FederationOption = HERE) -> None:
    """Stop a run; `resume` goes on with it. Exit codes: 0 it does not go on, 2 the server is not up."""
    from server.runs import stop_named  # noqa: PLC0415  (flwr)

    with explained(), at_home():
        stopped = stop_named(open_federation(federation), name)
        say(f"run {name}: stopped" if stopped else f"run {name}: did not go on")


def status_command(*, federation: FederationOption = HERE, as_json: JsonOption = False) -> None:
    """Show server, certificates, sites and the newest run. Exit codes: 0 it is up, 3 not, 2 no federation."""
    from server.overview import lines_of, overview  # noqa: PLC0415  (flwr)

    with explained(), at_home():
        seen: dict[str, Any] = overview(open_federation(federation), datetime.now(UTC))
        if as_json:
            typer.echo(json.dumps(seen))
        else:
            for line in lines_of(seen):
                show(line)
    raise typer.Exit(0 if seen["up"] else _NOT_RUNNING)


def proxy_command(
    federation: FederationOption = HERE,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output unless given.")] = None,
    listen: Annotated[int | None, typer.Option(help="Public port; that of the address unless given.")] = None,
) -> None:
    """Write an nginx configuration that lets sites reach what they need and nothing else. Installs nothing.

    Exit codes: 0 written, 2 no federation.
    """
    from server.proxy import proxy_configuration  # noqa: PLC0415  (jinja2)

    with explained():
        text = proxy_configuration(open_federation(federation), listen=listen)
        write_atomically(out, text.encode(), mode=0o644) if out else typer.echo(text, nl=False)


def assignments(given: list[str]) -> dict[str, Scalar]:
    """Read "key=value" texts; numbers and true/false are recognised by the configuration.

    Raises:
        InputError: `run_config`.
    """
    values: dict[str, Scalar] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError("run_config", f'-c {text!r} is no assignment: write -c "key=value".')
        values[key.strip()] = value.strip().strip("\"'")
    return values


def _interruptible(work: Callable[[], int], name: str) -> int:
    try:
        return work()
    except KeyboardInterrupt:
        say(f"The run goes on at the server. To stop it: multimix-server stop {name}")
        raise typer.Exit(130) from None


def _finish(folder: FederationFolder, name: str, code: int) -> None:
    if code == 0:
        show(f"report: {folder.runs / name / 'report.html'}")
        return
    from server.overview import why_stopped  # noqa: PLC0415  (flwr)

    for line in why_stopped(folder.runs / name):
        say(line)
    say(f"run {name} stopped early; to go on after its last round: multimix-server resume {name}")
    raise typer.Exit(_FAILED)
