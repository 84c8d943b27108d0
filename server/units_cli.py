"""`multimix-server units`: what systemd, logrotate and podman need to run the coordinator."""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from multimix.templates import fill_in
from server.provision.options import HERE, FederationOption

TEMPLATES: Final = Path(__file__).parent / "units"


def units(
    federation: FederationOption = HERE,
    out: Annotated[Path, typer.Option(help="Folder to write the files to.")] = Path("units"),
    user: Annotated[str, typer.Option(help="The user that runs the server.")] = "multimix-server",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port that the container publishes.")] = 8000,
) -> None:
    """Write a systemd unit, its user, permissions, log rotation and a Containerfile. Installs nothing.

    Exit codes: 0 written.
    """
    values = {
        "federation": federation.resolve(),
        "bin": Path(sys.executable).parent,
        "docs": "/usr/share/doc/multimix/deploy.md",
        "user": user,
        "port": port,
    }
    for path in fill_in(TEMPLATES, out, values):
        typer.echo(f"written: {path.name}")
