"""The federation as a folder at the coordinator: `federation.toml`, certificates, keys, and what its runs leave.

A site is its node key. Every key that was ever admitted stays on record, so that none comes back under another name.
"""

import fcntl
import json
import os
import pwd
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, model_validator

from multimix.config import Frozen
from multimix.contract.kit import Address, split_address
from multimix.contract.messages import Name
from multimix.contract.node_key import as_flower_keeps_it, node_key
from multimix.contract.signing import public_text
from multimix.errors import InputError
from multimix.files import write_atomically

FILE: Final = "federation.toml"
NodeKey = Annotated[str, AfterValidator(node_key)]  # OpenSSH's form without comment: what `flwr` registers
Port = Annotated[int, Field(ge=1, le=0xFFFF)]
_MOST_SITES: Final = 10_000
_SCALARS: Final = ("name", "address", "bind_port", "bind_host", "expose_superlink")
_HEADING: Final = "# The federation; `multimix-server admit`, `revoke` and `rotate` write here.\n"


class AdmittedSite(Frozen):
    """A site by its node key, and since when and until when it may take part."""

    public_key: NodeKey
    admitted: AwareDatetime
    revoked: AwareDatetime | None = None

    @property
    def takes_part(self) -> bool:
        """It was not revoked."""
        return self.revoked is None

    @property
    def flower_key(self) -> bytes:
        """Its key as `Grid.get_nodes()` and the SuperLink name it: PEM."""
        return as_flower_keeps_it(self.public_key)


class RetiredKey(Frozen):
    """A key that a site had before the one that it has now."""

    site: Name
    public_key: NodeKey
    admitted: AwareDatetime
    revoked: AwareDatetime


class FederationSettings(Frozen):
    """The whole of `federation.toml`."""

    name: Name
    address: Address  # that sites reach, by HTTPS
    bind_port: Port = 8000  # of the SuperLink
    bind_host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")] = "127.0.0.1"
    expose_superlink: bool = False  # bind_host may be reached from other machines; nothing but the proxy does
    sites: Annotated[dict[Name, AdmittedSite], Field(max_length=_MOST_SITES)] = Field(default_factory=dict)
    retired: Annotated[tuple[RetiredKey, ...], Field(max_length=_MOST_SITES)] = ()

    @model_validator(mode="after")
    def _a_key_has_one_name(self) -> "FederationSettings":
        keys = [*(site.public_key for site in self.sites.values()), *(entry.public_key for entry in self.retired)]
        if len(set(keys)) != len(keys):
            raise ValueError("a key stands under two names")
        return self

    @property
    def host(self) -> str:
        """The host of the address."""
        return split_address(self.address)[0]

    @property
    def admitted(self) -> dict[str, AdmittedSite]:
        """The sites that may take part, by name."""
        return {name: site for name, site in self.sites.items() if site.takes_part}

    @property
    def revoked_keys(self) -> frozenset[str]:
        """Every key that may never take part again: of revoked sites, and those that sites had before."""
        revoked = [site.public_key for site in self.sites.values() if not site.takes_part]
        return frozenset([*revoked, *(entry.public_key for entry in self.retired)])


@dataclass(frozen=True)
class FederationFolder:
    """A federation on disk."""

    path: Path
    settings: FederationSettings

    @property
    def ca(self) -> Path:
        """The authorities that sites trust, PEM; two of them while one takes over from the other."""
        return self.path / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The private key of the authority that signs."""
        return self.path / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate, PEM."""
        return self.path / "server.pem"

    @property
    def certificate_key(self) -> Path:
        """The server's private key."""
        return self.path / "server.key"

    @property
    def coordinator(self) -> Path:
        """The key that signs plans, heads and kits: Ed25519, PEM."""
        return self.path / "coordinator.key"

    @property
    def heads(self) -> Path:
        """The heads of the sites' ledgers that were countersigned."""
        return self.path / "heads.jsonl"

    @property
    def runs(self) -> Path:
        """A folder for each run."""
        return self.path / "runs"

    @property
    def flower(self) -> Path:
        """FLWR_HOME, the SuperLink's database and logs."""
        return self.path / "flower"

    def signing_key(self) -> Ed25519PrivateKey:
        """Read the coordinator's key.

        Raises:
            InputError: `coordinator_key_unusable`; `coordinator_key_not_private` where others may read it.
        """
        try:
            with self.coordinator.open("rb") as opened:
                mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
                key = load_pem_private_key(opened.read(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(
                "coordinator_key_unusable", "coordinator.key of the federation's folder cannot be used. Restore it."
            )
        if mode & 0o077:
            raise InputError(
                "coordinator_key_not_private",
                f"Others may read coordinator.key (mode {mode:04o}). Whoever has it can order training at every site. "
                "If nobody else could get at it, set its mode to 0600; else set the federation up anew.",
            )
        return key

    def coordinator_key(self) -> str:
        """Return the public half of the coordinator's key, base64; raises as `signing_key`."""
        return public_text(self.signing_key())


def open_federation(path: Path) -> FederationFolder:
    """Read a federation's settings.

    Raises:
        InputError: `federation_missing`, `wrong_user` where it is another user's, `federation_invalid` with the key and
            what is wrong.
    """
    try:
        text = (path / FILE).read_text("utf-8")
    except PermissionError:
        raise _wrong_user(path) from None
    except (OSError, UnicodeDecodeError):
        raise InputError(
            "federation_missing",
            f"There is no federation here: no readable {FILE}. Make one with `multimix-server init HOST`.",
        ) from None
    try:
        return FederationFolder(path, FederationSettings.model_validate(tomllib.loads(text)))
    except tomllib.TOMLDecodeError:
        raise InputError("federation_invalid", f"{FILE} is not valid TOML. Restore it from its backup.") from None
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or FILE
        words = first["msg"].removeprefix("Value error, ")
        raise InputError("federation_invalid", f"{FILE}, {key}: {words}. Correct it.") from None


@contextmanager
def editing(path: Path) -> Iterator[FederationFolder]:
    """Read the federation while no other command changes it: nobody's revocation or authority may be written over.

    Raises:
        InputError: `wrong_user` where the files written would be another user's than the folder, and as
            `open_federation`.
    """
    open_federation(path)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if os.geteuid() not in {0, os.fstat(lock).st_uid}:  # what root writes stays the folder's owner's
            raise _wrong_user(path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield open_federation(path)
    finally:
        os.close(lock)


def check_owner(folder: FederationFolder) -> None:
    """Refuse to leave files behind that the folder's owner cannot use, as a server of root's would; `wrong_user`."""
    if folder.path.stat().st_uid != os.geteuid():
        raise _wrong_user(folder.path)


def check_exposed(settings: FederationSettings) -> None:
    """Refuse a SuperLink that other machines can reach, unless that was said; InputError `superlink_exposed`."""
    if not settings.expose_superlink and not _is_loopback(settings.bind_host):
        raise InputError(
            "superlink_exposed",
            f"bind_host {settings.bind_host} is not this machine's loopback, and the SuperLink's control API has no "
            "authentication: whoever reaches it starts runs and admits sites. Take 127.0.0.1. Only in a network where "
            "nobody but the proxy reaches it: init --expose-superlink, or expose_superlink = true in "
            f"{FILE}.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wrong_user(path: Path) -> InputError:
    try:
        user = pwd.getpwuid(path.stat().st_uid).pw_name
    except (OSError, KeyError):
        user = "multimix-server"
    return InputError(
        "wrong_user",
        f"The federation's folder is another user's. Run this as its owner: sudo -u {user} multimix-server ...",
    )


def write_settings(folder: FederationFolder, settings: FederationSettings) -> FederationFolder:
    """Replace `federation.toml` atomically and return the folder as it is then."""
    write_atomically(folder.path / FILE, _toml(settings).encode())
    return FederationFolder(folder.path, settings)


def _toml(settings: FederationSettings) -> str:
    lines = [f"{key} = {_value(getattr(settings, key))}" for key in _SCALARS]
    for name, site in settings.sites.items():
        lines += ["", f"[sites.{_value(name)}]", *_entries(site)]
    for entry in settings.retired:
        lines += ["", "[[retired]]", *_entries(entry)]
    return _HEADING + "\n".join(lines) + "\n"


def _entries(value: Frozen) -> list[str]:
    return [f"{key} = {_value(entry)}" for key, entry in value if entry is not None]


def _value(value: str | int | datetime) -> str:
    """Return a value as TOML; what JSON writes of ASCII text and numbers is TOML too."""
    return value.isoformat() if isinstance(value, datetime) else json.dumps(value)
