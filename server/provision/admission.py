"""Who takes part: sites are admitted and revoked by their node key, and no key ever changes its name."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from multimix.contract.messages import Name
from multimix.contract.node_key import PREFIX, node_key
from multimix.errors import InputError
from server.provision.folder import AdmittedSite, FederationFolder, FederationSettings, RetiredKey, editing
from server.provision.folder import write_settings as _write
from server.provision.rotation import utcnow

if TYPE_CHECKING:
    from server.nodes import Node

_MOST_BYTES: Final = 4096  # of a file with a public key
_LOOK_S: Final = 0.2
_NAME: Final = TypeAdapter(Name)


def admit(path: Path, site: str, key: str, *, now: Callable[[], datetime] = utcnow) -> FederationFolder:
    """Admit a site by its node key; again with the same key nothing changes.

    Raises:
        InputError: `site_name`, `key_unusable`, `key_revoked`, `key_of_another_site`, `site_admitted` (it has another
            key), and as `editing`.
    """
    name, key = checked_name(site), checked_key(key)
    with editing(path) as folder:
        settings = folder.settings
        had = settings.sites.get(name)
        if had is not None and had.takes_part and had.public_key == key:
            return folder
        _refuse(settings, name, key)
        retired = settings.retired
        if had is not None and had.revoked is not None:
            old = RetiredKey(site=name, public_key=had.public_key, admitted=had.admitted, revoked=had.revoked)
            retired = (*retired, old)
        new = AdmittedSite(public_key=key, admitted=now().astimezone(UTC))
        sites = {**settings.sites, name: new}
        return _write(folder, settings.model_copy(update={"sites": sites, "retired": retired}))


def revoke(path: Path, site: str, *, now: Callable[[], datetime] = utcnow) -> FederationFolder:
    """Revoke a site, for good as far as its key goes; again nothing changes.

    Raises:
        InputError: `site_unknown`, and as `editing`.
    """
    with editing(path) as folder:
        settings = folder.settings
        had = settings.sites.get(site)
        if had is None:
            raise InputError("site_unknown", f"No site {site!r} was admitted. `multimix-server sites` lists them.")
        if not had.takes_part:
            return folder
        gone = had.model_copy(update={"revoked": now().astimezone(UTC)})
        return _write(folder, settings.model_copy(update={"sites": {**settings.sites, site: gone}}))


def shut_out(
    folder: FederationFolder, site: str, nodes: Callable[[], "Iterable[Node]"], *, within_s: float = 5.0
) -> bool:
    """Say whether the SuperLink takes a revocation over within a few seconds; `nodes` asks it for its register."""
    key = folder.settings.sites[site].flower_key
    until = time.monotonic() + within_s
    while any(node.registered and node.key == key for node in nodes()):
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_S)
    return True


def checked_name(site: str) -> str:
    """Return a site's name; InputError `site_name`."""
    try:
        return _NAME.validate_python(site)
    except ValidationError:
        raise InputError(
            "site_name", f"{site!r} is no name of a site: 1 to 64 letters, digits, . _ - and a letter or digit first."
        ) from None


def checked_key(text_or_file: str) -> str:
    """Return a node's public key, given itself or as a file; InputError `key_unusable`, `key_private`."""
    text = text_or_file if text_or_file.startswith(PREFIX) else _content(Path(text_or_file))
    if "PRIVATE KEY" in text:
        raise InputError(
            "key_private",
            "This is a private key, which never leaves its site. Delete it here, and have the site make another one: "
            "multimix-site join KIT --new-key.",
        )
    try:
        return node_key(text.strip())
    except ValueError:
        raise InputError(
            "key_unusable", f"This is no public key that `multimix-site join` printed; it begins with {PREFIX}384."
        ) from None


def _refuse(settings: FederationSettings, name: str, key: str) -> None:
    if key in settings.revoked_keys:
        raise InputError(
            "key_revoked",
            "This key was revoked, and stays so. The site makes another one: multimix-site join KIT --new-key.",
        )
    for other, site in settings.admitted.items():
        if site.public_key == key:
            raise InputError("key_of_another_site", f"This is the key of site {other}. A key has one name.")
    if name in settings.admitted:
        raise InputError(
            "site_admitted", f"Site {name} takes part with another key. To change it: multimix-server revoke {name}."
        )


def _content(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(_MOST_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError, ValueError):
        raise InputError("key_unusable", "There is no such file with a public key, and it is no key itself.") from None
