"""`multimix-site connect`: the connector, from a command line."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from client.connector import connect, open_connector
from client.console import discreet, err
from client.settings import open_site
from multimix.errors import SiteError
from multimix.processes import stop_signals

_HERE = Path("site")
_FAILED = 1


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("connect")(connect_command)


def connect_command(
    *,
    site: Annotated[
        Path, typer.Option("--site", "-s", envvar="MULTIMIX_SITE", help="The site's folder, where one user runs all.")
    ] = _HERE,
    folder: Annotated[
        Path | None, typer.Option(help="The connector's own folder; as site.toml says unless given.")
    ] = None,
    socket: Annotated[Path | None, typer.Option(help="The agent's socket; as site.toml says unless given.")] = None,
    once: Annotated[bool, typer.Option("--once", help="End when the SuperNode ends; do not try again.")] = False,
    polling: Annotated[
        Literal["quick", "flower"],
        typer.Option(help="quick: look for work often while there is some. flower: every 3 s, as Flower does."),
    ] = "quick",
) -> None:
    """Connect this site to the coordinator's server and stay connected: one connection outwards, none inwards.

    It needs neither images nor torch, and reads nothing but its own folder. HTTPS_PROXY and NO_PROXY are honoured. Stop
    it with Ctrl-C or SIGTERM; the server then knows at once that the site is away.

    Exit codes: 0 stopped, 1 (with --once) it could not connect, or the connection ended, 2 the folder is not complete,
    or a connector runs here.
    """
    with discreet(), stop_signals() as stopped:
        folder, socket = _places(site, folder, socket)
        connector = open_connector(folder, socket, polling=polling)
        _say("connect", f"site {connector.kit.site} of federation {connector.kit.federation}")
        code = connect(connector, stopped, _say, once=once)
    if code and not stopped.is_set():
        raise typer.Exit(_FAILED)


def _places(site: Path, folder: Path | None, socket: Path | None) -> tuple[Path, Path]:
    """Return the connector's folder and the agent's socket, as site.toml has them where this user may read it."""
    if folder is not None and socket is not None:
        return folder, socket
    try:
        opened = open_site(site)
    except SiteError:
        return folder or site / "connector", socket or site / "socket" / "agent.sock"
    return folder or opened.connector, socket or opened.socket


def _say(reason: str, words: str) -> None:
    line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {reason}: {words}"
    err.print(line, markup=False, highlight=False, soft_wrap=True)
