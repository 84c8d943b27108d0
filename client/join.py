"""Joining a federation: a kit is checked whole, and the site's folder completed with what it says.

The connector's folder (`agent.connector_folder`, else `SITE/connector/`) holds all that the connector may read: the
kit's word on where the server is, the authorities that it trusts, and the key that it shows. The key is made here and
never leaves; whoever takes it can answer in the site's name, but reads nothing of the site. Where root joins for a site
of three users, what is written belongs to whoever reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.kit_files import read_kit_files
from client.ownership import as_owner_of, rewrite
from client.settings import FILE, SiteFolder, new_site, open_site
from client.site_text import Value, with_section
from multimix.contract.kit import AUTHORITY, KIT, Kit, verified_kit
from multimix.contract.node_key import new_node_key, node_fingerprint, public_half, same_fingerprint
from multimix.errors import SiteError
from multimix.files import write_atomically
from multimix.privacy.ledger import FILE as LEDGER
from multimix.privacy.ledger import create_ledger

NODE_KEY: Final = "node.key"
NODE_PUBLIC: Final = "node.pub"
IMAGE_SIZE: Final = 256  # pixels, of a site that join makes


@dataclass(frozen=True)
class ReadKit:
    """A kit that agrees with itself, and the files of it that the connector reads."""

    kit: Kit
    document: bytes  # kit.json
    authorities: bytes  # ca.pem


@dataclass(frozen=True)
class Joined:
    """What the coordinator has to be told."""

    site: SiteFolder
    public_key: str
    fingerprint: str
    ledger_begun: bool

    @property
    def admit_command(self) -> str:
        """What the coordinator runs."""
        return f"multimix-server admit {self.site.settings.name} '{self.public_key}'"


def read_kit(path: Path) -> ReadKit:
    """Read and check a kit; SiteError as `read_kit_files` and `verified_kit`."""
    files = read_kit_files(path)
    return ReadKit(verified_kit(files), files[KIT], files[AUTHORITY])


def check_fingerprint(kit: Kit, given: str) -> None:
    """Refuse a kit that is not by the coordinator on the telephone: SiteError `fingerprint_wrong`."""
    if not same_fingerprint(given, kit.fingerprint):
        raise SiteError(
            "fingerprint_wrong",
            f"The kit is by another key than the fingerprint says: the kit's is {kit.fingerprint}. Do not use it "
            "before you and the coordinator have found out why.",
        )


def join(
    read: ReadKit,
    path: Path,
    *,
    population: Mapping[str, Value] | None = None,
    image_size: int = IMAGE_SIZE,
    new_key: bool = False,
) -> Joined:
    """Make or complete the site's folder, and make the node's key; again with a newer kit it updates what is there.

    Raises:
        SiteError: `site_name_differs`, `coordinator_differs`, `population_exists`, `node_key_unusable`, and as
            `open_site`, `new_site`, `with_section`, `rewrite`.
        Refused: as `create_ledger`.
    """
    existed = (path / FILE).exists()
    if existed:
        _check_same(open_site(path), read.kit, population)
    site = open_site(path) if existed else new_site(path, read.kit.site, image_size=image_size)
    text = _completed(site, read.kit, population)
    with as_owner_of(site.connector):
        public = _node_key(site.connector, make_new=new_key)
        write_atomically(site.connector / AUTHORITY, read.authorities, mode=0o644)
        write_atomically(site.connector / KIT, read.document, mode=0o644)
    rewrite(site.authority, read.authorities)
    rewrite(site.path / FILE, text.encode())
    site = open_site(path)
    begun = population is not None and _begin_ledger(site)
    return Joined(site, public, node_fingerprint(public), begun)


def _check_same(site: SiteFolder, kit: Kit, population: Mapping[str, Value] | None) -> None:
    """Refuse to make one site into another."""
    settings = site.settings
    if settings.name != kit.site:
        raise SiteError(
            "site_name_differs", f"The kit is for site {kit.site}, and here is another. Give another --folder."
        )
    key = settings.server.coordinator_key if settings.server else None
    if key is not None and key != kit.coordinator_key:
        raise SiteError(
            "coordinator_differs",
            "The kit is by another coordinator than the one that may order training here. If that is right, remove "
            "coordinator_key from [server] of site.toml, and join again.",
        )
    if population is not None and settings.population is not None:
        said = settings.population.model_dump(mode="json")
        if any(said[name] != _plain(value, said[name]) for name, value in population.items()):
            raise SiteError(
                "population_exists",
                "site.toml declares its population already, in other numbers. Change it there, with the privacy "
                "officer, and join without these options.",
            )


def _plain(value: Value, said: object) -> object:
    """Fill what is left out of a table with what the site says, to compare."""
    return {**said, **value} if isinstance(value, Mapping) and isinstance(said, dict) else value


def _completed(site: SiteFolder, kit: Kit, population: Mapping[str, Value] | None) -> str:
    server = {
        "address": kit.address,
        "ca_file": str(site.authority.resolve()),
        "coordinator_key": kit.coordinator_key,
    }
    text = with_section((site.path / FILE).read_text("utf-8"), "server", server)
    if population is None or site.settings.population is not None:
        return text
    return with_section(text, "population", population)


def _node_key(connector: Path, *, make_new: bool) -> str:
    """Return the public key of the node; its private key is made where there is none."""
    connector.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = connector / NODE_KEY
    if make_new or not file.exists():
        write_atomically(file, new_node_key())
    try:
        public = public_half(file.read_bytes())
    except (OSError, ValueError):
        raise SiteError(
            "node_key_unusable",
            "connector/node.key cannot be read, or is no key of a node. Restore it, or join with --new-key and have "
            "the coordinator admit that one.",
        ) from None
    write_atomically(connector / NODE_PUBLIC, public.encode() + b"\n", mode=0o644)
    return public


def _begin_ledger(site: SiteFolder) -> bool:
    """Begin the population's ledger unless there is one: it outlives installations."""
    if (site.ledger / LEDGER).exists():
        return False
    with as_owner_of(site.ledger if site.ledger.is_dir() else site.ledger.parent):
        create_ledger(site.ledger, site=site.settings.name, population=site.population.name)
    return True
