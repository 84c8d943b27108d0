"""`multimix-server init`, `kit`, `admit`, `revoke`, `sites`, `certificates`, `rotate`: setting a federation up."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from multimix.contract.kit import coordinator_fingerprint, split_address
from multimix.contract.node_key import node_fingerprint, same_fingerprint
from multimix.errors import InputError
from server.provision import admission, kits, rotation
from server.provision.certificates import Expiry
from server.provision.folder import AdmittedSite, FederationFolder, FederationSettings, check_exposed, open_federation
from server.provision.options import HERE, FederationOption, JsonOption, at_home, explained, say, show
from server.provision.tls import Shown

EXIT_NOT_IN_FORCE: Final = 1
EXIT_SOON: Final = 1
EXIT_EXPIRED: Final = 3
_HTTPS: Final = 443
_SuperLinkPort = Annotated[int, typer.Option(min=1, max=65535, help="Of the SuperLink, behind the proxy.")]
_SuperLinkHost = Annotated[str, typer.Option(help="Of the SuperLink; its control API is open to whoever reaches it.")]
_Expose = Annotated[
    bool,
    typer.Option(
        "--expose-superlink",
        help="Allow a --bind-host other than the loopback. The SuperLink's control API has no authentication: only in "
        "a network where nobody but the proxy reaches it.",
    ),
]
Site = Annotated[str, typer.Argument(help="The site's name: letters, digits, . _ -")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (init, kit, admit, revoke, sites, certificates, rotate):
        app.command()(command)


def init(
    host: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="Where sites reach the server; port 443 if none.")],
    *,
    name: Annotated[str, typer.Option(help="The federation's name: letters, digits, . _ -")] = "federation",
    bind_port: _SuperLinkPort = 8000,
    bind_host: _SuperLinkHost = "127.0.0.1",
    expose_superlink: _Expose = False,
    federation: FederationOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Make a federation: its folder, certificate authority, server certificate, and the coordinator's signing key.

    Exit codes: 0 made, 2 one is there already, or the host or name cannot be used.
    """
    with explained():
        settings = _settings(host, name, bind_host, bind_port, expose=expose_superlink)
        check_exposed(settings)
        folder = rotation.new_federation(federation, settings)
        fingerprint = coordinator_fingerprint(folder.coordinator_key())
        if as_json:
            typer.echo(json.dumps({"name": name, "address": settings.address, "fingerprint": fingerprint}))
            return
        show(f"federation   {name}\naddress      {settings.address}\nfingerprint  {fingerprint}")
        say(
            "Read the fingerprint out to each site on the telephone. Back the folder up: whoever has coordinator.key "
            "can order training, and without it every site has to join again.\nNext: multimix-server kit SITE"
        )


def kit(
    site: Site,
    *,
    file: Annotated[Path | None, typer.Option("--out", help="The file; SITE.kit.zip unless given.")] = None,
    federation: FederationOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write the kit of a site: what it needs to join. There is no secret in it; send it as you like.

    Exit codes: 0 written, 2 it cannot be.
    """
    with explained():
        folder = open_federation(federation)
        _warn(rotation.expiring(folder, rotation.utcnow()))
        written, made = kits.write_kit(folder, site, file)
        if as_json:
            typer.echo(json.dumps({"file": str(written), "fingerprint": made.fingerprint}))
            return
        show(f"kit          {written}\nfingerprint  {made.fingerprint}")
        say("Send the kit, and read the fingerprint out on the telephone. The site runs: multimix-site join KIT")


def admit(
    site: Site,
    key: Annotated[str, typer.Argument(metavar="PUBKEY", help="What `multimix-site join` printed, or node.pub.")],
    *,
    fingerprint: Annotated[str | None, typer.Option(help="Of the key, as the site reads it out.")] = None,
    federation: FederationOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Admit a site by its public key. A key has one name for good, and a revoked one never comes back.

    Exit codes: 0 admitted, 2 refused.
    """
    with explained():
        found = node_fingerprint(admission.checked_key(key))
        if fingerprint is not None and not same_fingerprint(fingerprint, found):
            raise InputError("fingerprint_wrong", f"The key's fingerprint is {found}: it is another key. Ask the site.")
        folder = admission.admit(federation, site, key)
        if as_json:
            typer.echo(json.dumps(_row(site, folder.settings.sites[site])))
            return
        show(f"admitted {site}, fingerprint {found}")
        if fingerprint is None:
            say("Compare the fingerprint with the site's on the telephone; if it differs, revoke it now.")


def revoke(site: Site, *, federation: FederationOption = HERE, as_json: JsonOption = False) -> None:
    """Revoke a site: its key is refused for good, and the running server is asked whether it shuts the site out.

    Exit codes: 0 revoked and shut out, 1 revoked and not in force yet (the server does not answer or has not taken it
    over; run it again to see), 2 there is no such site, or it cannot be revoked.
    """
    with explained():
        folder = admission.revoke(federation, site)
        gone, missing = folder.settings.sites[site], _not_in_force(folder, site)
        if as_json:
            typer.echo(json.dumps({**_row(site, gone), "in_force": not missing}))
        else:
            show(f"revoked {site} at {_time(gone.revoked)}")
    if missing:
        say(f"NOT IN FORCE YET: {missing}", style="yellow")
        raise typer.Exit(EXIT_NOT_IN_FORCE)


def sites(*, federation: FederationOption = HERE, as_json: JsonOption = False) -> None:
    """List the sites, with their keys' fingerprints. Exit codes: 0 listed, 2 no federation here."""
    with explained():
        rows = [_row(name, site) for name, site in open_federation(federation).settings.sites.items()]
        if as_json:
            typer.echo(json.dumps(rows))
            return
        for row in rows:
            until = f"revoked {row['revoked']}" if row["revoked"] else f"admitted {row['admitted']}"
            show(f"{row['site']}  {row['fingerprint']}  {until}")
        if not rows:
            say("No site was admitted yet.")


def certificates(*, federation: FederationOption = HERE, as_json: JsonOption = False) -> None:
    """Say what expires when, and whether the server and its proxy show the newest.

    Exit codes: 0 all good, 1 soon (30 days) or not shown yet, 3 expired or not valid yet, 2 unreadable.
    """
    with explained():
        folder = open_federation(federation)
        server, *authorities = rotation.certificates_of(folder, rotation.utcnow())
        stale = rotation.not_served(folder)
        if stale and server.state in {"good", "soon"}:
            server = server.model_copy(update={"state": "not_served"})
        found = [server, *authorities]
        if as_json:
            typer.echo(json.dumps([each.model_dump(mode="json") for each in found]))
        else:
            for each in found:
                show(f"{each.expires:%Y-%m-%d}  {each.days_left:5} days  {each.state:10}  {each.name}")
        states = {each.state for each in found if each.needed}
    _warn([each for each in found if each.needed and each.state not in {"good", "not_served"}])
    _say_stale(stale)
    if states & {"expired", "not_yet_valid"}:
        raise typer.Exit(EXIT_EXPIRED)
    if states & {"soon", "not_served"}:
        raise typer.Exit(EXIT_SOON)


def rotate(
    *,
    ca: Annotated[
        bool, typer.Option("--ca", help="Make a new authority; kits then carry the old and the new.")
    ] = False,
    switch: Annotated[bool, typer.Option("--switch", help="Every site has joined again: use the new one.")] = False,
    forget_old: Annotated[bool, typer.Option("--forget-old", help="Trust the old authority no longer.")] = False,
    federation: FederationOption = HERE,
) -> None:
    """Renew the server's key and certificate: once a year. No site has to do anything.

    The new certificate is shown once the server is restarted and the proxy reloaded, between two runs; until then
    `certificates` says not_served.

    To replace the authority, without a site being cut off: 1. rotate --ca; 2. kit SITE for every site, and each runs
    multimix-site join KIT again and restarts its connector; 3. rotate --switch, restart the server and reload the
    proxy; 4. rotate --forget-old, which looks whether they were.

    Exit codes: 0 done, 2 it cannot be.
    """
    with explained():
        folder = open_federation(federation)
        if ca + switch + forget_old > 1:
            raise InputError("one_step_at_a_time", "Give --ca, --switch or --forget-old: each after the one before.")
        if ca:
            rotation.both(folder)
            say(
                "There is a new authority; the server still shows the old one's certificate. Now send every site a new "
                "kit (multimix-server kit SITE), have each run multimix-site join KIT again and restart its connector. "
                "When all have: multimix-server rotate --switch"
            )
        elif forget_old:
            unseen = rotation.forget_old(folder)
            say("The old authority is forgotten: new kits carry the new one alone.")
            for each in unseen:
                say(f"Nobody answers at {each.address} from here: see that a running one was restarted since --switch.")
        else:
            rotation.renew(folder, switch=switch)
            say("The server has a new certificate, which is shown once it is restarted and the proxy reloaded.")
            _say_stale(rotation.not_served(folder))


def _not_in_force(folder: FederationFolder, site: str) -> str:
    """Return why the running server does not keep a revoked site out yet; "" where it does."""
    from server.nodes import list_nodes  # noqa: PLC0415  (flwr)

    try:
        with at_home():
            taken_over = admission.shut_out(folder, site, lambda: list_nodes(folder))
    except InputError as error:
        return f"the server cannot be asked ({error.reason}). Once it runs: multimix-server revoke {site}"
    if taken_over:
        return ""
    return f"the server has not taken it over; its log says why. Stop it, or again: multimix-server revoke {site}"


def _say_stale(stale: list[Shown]) -> None:
    for each in stale:
        say(
            f"NOT SERVED YET at {each.address}, which shows another one: between two runs {each.remedy}", style="yellow"
        )


def _settings(host: str, name: str, bind_host: str, bind_port: int, *, expose: bool) -> FederationSettings:
    address = host if ":" in host.rpartition("]")[2] else f"{host}:{_HTTPS}"
    try:
        split_address(address)
    except ValueError:
        raise InputError("address_unusable", f"{host!r} is no HOST or HOST:PORT; write IPv6 as [::1]:443.") from None
    try:
        return FederationSettings(
            name=name, address=address, bind_host=bind_host, bind_port=bind_port, expose_superlink=expose
        )
    except ValueError:
        raise InputError(
            "federation_name",
            "--name is 1 to 64 letters, digits, . _ - with a letter or digit first; --bind-host is a "
            "host or an address.",
        ) from None


def _warn(found: list[Expiry]) -> None:
    words = {"expired": "has EXPIRED", "soon": "expires soon", "not_yet_valid": "is not valid yet: check this clock"}
    for each in found:
        step = "multimix-server rotate" + (" --ca" if each.name.startswith("authority") else "")
        say(f"{each.name} {words[each.state]} ({each.expires:%Y-%m-%d}): {step}", style="yellow")


def _row(name: str, site: AdmittedSite) -> dict[str, str | None]:
    return {
        "site": name,
        "fingerprint": node_fingerprint(site.public_key),
        "admitted": _time(site.admitted),
        "revoked": _time(site.revoked),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%d %H:%M:%S %Z}"
