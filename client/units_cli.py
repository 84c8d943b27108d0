"""`multimix-site units`: what systemd, logrotate and podman need to run a site as three users."""

import re
import sys
from importlib.metadata import requires
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final

import typer

from client.console import discreet, err, out
from client.intake.cli import HERE, SiteOption
from client.layout import Layout, check_visible, layout_of, settle, unsaid
from client.settings import SiteFolder, open_site
from multimix.errors import SiteError
from multimix.templates import fill_in

TEMPLATES: Final = Path(__file__).parent / "units"
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,21}")  # 32 at most, with the longest of the endings
_HEAVY: Final = ("torch", "opacus", "dp-accounting", "scipy")  # the connector computes nothing
_OPEN: Final = (
    "NOT RESTRICTED: the connector runs the code that the server sends it, and reaches all that this machine reaches. "
    "Give --server ADDRESS (behind a proxy --proxy ADDRESS), or have a firewall let it out to the server only."
)


def units(
    *,
    site: SiteOption = HERE,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write the files to.")] = Path("units"),
    apply: Annotated[
        bool, typer.Option("--apply", help="Say it in site.toml, and move ledger, log and key to their new folders.")
    ] = False,
    agent_folder: Annotated[
        Path | None, typer.Option(help="What the agent writes: ledger, log. SITE-agent unless site.toml says another.")
    ] = None,
    connector_folder: Annotated[
        Path | None, typer.Option(help="The connector's folder; SITE-connector unless site.toml says another.")
    ] = None,
    user: Annotated[
        str, typer.Option(help="Users are called USER-intake, USER-agent and USER-connector.")
    ] = "multimix",
    pacs: Annotated[str, typer.Option(help="The PACS's IP addresses, with commas: all that intake may reach.")] = "",
    server: Annotated[
        str, typer.Option(help="The coordinator's IP addresses, with commas: all that the connector may reach.")
    ] = "",
    proxy: Annotated[str, typer.Option(help="In its place the IP addresses of the hospital's proxy.")] = "",
    dns: Annotated[
        str, typer.Option(help="IP addresses that answer the server's name, where that is not this machine.")
    ] = "",
    binaries: Annotated[
        Path | None, typer.Option("--bin", help="The folder of multimix-site; of this very program unless given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Processor threads of the agent.")] = 4,
) -> None:
    """Write systemd units, users, permissions, log rotation and Containerfiles for this site. Installs nothing.

    With --apply, site.toml is made to say where everything lies; run that as root, with the agent stopped.

    Exit codes: 0 written, 2 no site here, or a value that cannot be used.
    """
    with discreet():
        opened = open_site(site)
        if not _USER.fullmatch(user):
            raise SiteError("user_name", "A user's name is of small letters, digits, - and _, at most 22.")
        layout = layout_of(opened, user=user, agent=agent_folder, connector=connector_folder)
        reached = proxy or server
        values = {
            **_places(layout, binaries),
            "receiver_port": opened.settings.receiver.port if opened.settings.receiver else "",
            "pacs_address": _addresses(pacs),
            "server_address": " ".join(filter(None, (_addresses(reached), _addresses(dns) if reached else ""))),
            "threads": threads,
            "connector_packages": " ".join(f"'{each}'" for each in connector_packages()),
        }
        for path in fill_in(TEMPLATES, out_folder, values):
            out.print(f"written: {path.name}", highlight=False)
        if not reached:
            err.print(_OPEN, style="bold yellow", highlight=False, soft_wrap=True)
        if apply:
            settle(opened, layout)
            out.print("site.toml says so. What root does now: docs/deploy.md, For good", highlight=False)
        else:
            _show_unsaid(opened, layout)


def connector_packages() -> list[str]:
    """Return what the connector needs installed: this project's requirements without those that compute."""
    needed = [each for each in requires("multimix") or [] if "extra ==" not in each]
    light = [each for each in needed if not each.startswith(_HEAVY)]
    return [each.replace("flwr[simulation]", "flwr") for each in light]


def _places(layout: Layout, binaries: Path | None) -> dict[str, object]:
    if binaries is None:
        check_visible(Path(sys.executable).parent, Path(sys.executable).resolve(), Path(sys.base_prefix))
    else:
        check_visible(binaries)
    return {
        "site": layout.site,
        "agent": layout.agent,
        "ledger": layout.ledger,
        "connector": layout.connector,
        "metrics": layout.metrics,
        "socket": layout.socket,
        "socket_folder": layout.socket.parent,
        "runtime_directory": layout.runtime_directory,
        "writable": layout.writable,
        "bin": binaries or Path(sys.executable).parent,
        "docs": "/usr/share/doc/multimix/deploy.md",
        "intake_user": f"{layout.user}-intake",
        "agent_user": layout.agent_user,
        "connector_user": layout.connector_user,
    }


def _show_unsaid(site: SiteFolder, layout: Layout) -> None:
    sections = unsaid(site, layout)
    if not sections:
        return
    lines = [
        line
        for section, keys in sections.items()
        for line in (*([f"[{section}]"] if section else ()), *(f'{key} = "{value}"' for key, value in keys.items()))
    ]
    words = "site.toml does not say this yet. With --apply it will, and ledger, log and key are moved there:"
    err.print(words, *lines, sep="\n", markup=False, highlight=False, soft_wrap=True)


def _addresses(given: str) -> str:
    """Return addresses as systemd takes them; SiteError `address_needed` for a name."""
    try:
        return " ".join(str(ip_network(each.strip())) for each in given.split(",") if each.strip())
    except ValueError:
        raise SiteError(
            "address_needed", "Give IP addresses or networks, not names: systemd looks no name up."
        ) from None
