"""`multimix-site units`: what systemd, logrotate and podman need to run a site as three users."""

import re
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Annotated, Final

import typer

from client.console import discreet, out
from client.intake.cli import HERE, SiteOption
from client.settings import open_site
from multimix.errors import SiteError
from multimix.templates import fill_in

TEMPLATES: Final = Path(__file__).parent / "units"
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_HEAVY: Final = ("torch", "opacus", "dp-accounting", "scipy")  # the connector computes nothing


def units(  # noqa: PLR0917  (typer)
    site: SiteOption = HERE,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write the files to.")] = Path("units"),
    agent_folder: Annotated[
        Path | None, typer.Option(help="What the agent writes: ledger, log. SITE-agent unless given.")
    ] = None,
    connector_folder: Annotated[
        Path | None, typer.Option(help="The connector's folder; SITE-connector unless given.")
    ] = None,
    user: Annotated[
        str, typer.Option(help="Users are called USER-intake, USER-agent and USER-connector.")
    ] = "multimix",
    pacs: Annotated[str, typer.Option(help="The PACS's IP address: all that intake may reach.")] = "",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Processor threads of the agent.")] = 4,
) -> None:
    """Write systemd units, users, permissions, log rotation and Containerfiles for this site. Installs nothing.

    Exit codes: 0 written, 2 no site here, or a value that cannot be used.
    """
    with discreet():
        opened = open_site(site)
        folder, settings = opened.path.resolve(), opened.settings
        if not _USER.fullmatch(user):
            raise SiteError("user_name", "A user's name is of small letters, digits, - and _, at most 31.")
        _check_address(pacs)
        agent = _beside(folder, agent_folder or settings.agent.folder, "agent")
        values = {
            "site": folder,
            "agent": agent,
            "connector": _beside(folder, connector_folder, "connector"),
            "socket": "/run/multimix/agent.sock",
            "socket_folder": "/run/multimix",
            "bin": Path(sys.executable).parent,
            "docs": "/usr/share/doc/multimix/deploy.md",
            "intake_user": f"{user}-intake",
            "agent_user": f"{user}-agent",
            "connector_user": f"{user}-connector",
            "pacs_address": pacs,
            "threads": threads,
            "connector_packages": " ".join(f"'{each}'" for each in connector_packages()),
        }
        for path in fill_in(TEMPLATES, out_folder, values):
            out.print(f"written: {path.name}", highlight=False)
        if (settings.agent.folder, settings.agent.connector_group) != (agent, f"{user}-connector"):
            lines = f'[agent]\nfolder = "{agent}"\nconnector_group = "{user}-connector"'
            out.print(f"Set in site.toml, and move an existing ledger there:\n{lines}", markup=False, highlight=False)


def connector_packages() -> list[str]:
    """Return what the connector needs installed: this project's requirements without those that compute."""
    needed = [each for each in requires("multimix") or [] if "extra ==" not in each]
    light = [each for each in needed if not each.startswith(_HEAVY)]
    return [each.replace("flwr[simulation]", "flwr") for each in light]


def _beside(site: Path, given: Path | None, what: str) -> Path:
    return (given or site.with_name(f"{site.name}-{what}")).resolve()


def _check_address(address: str) -> None:
    from ipaddress import ip_network  # noqa: PLC0415  (used by this command alone)

    try:
        if address:
            ip_network(address)
    except ValueError:
        raise SiteError("pacs_address", "Give the PACS as an IP address or network, not as a name.") from None
