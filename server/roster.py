"""Which node is which site: by the key that its coordinator admitted, never by what the site calls itself."""

from collections.abc import Callable
from dataclasses import dataclass

from multimix.contract.node_key import as_flower_keeps_it
from multimix.errors import Refused
from server.provision.folder import FederationSettings


@dataclass(frozen=True)
class Roster:
    """The admitted sites; read anew at every question, since the coordinator admits and revokes during a run."""

    settings: Callable[[], FederationSettings]

    def admitted(self) -> frozenset[str]:
        """Return the names of the sites that may take part now."""
        return frozenset(self.settings().admitted)

    def name_of(self, key: bytes) -> str:
        """Return the site of a node's public key (PEM); Refused `site_unknown` or `site_revoked`."""
        settings = self.settings()
        for name, site in settings.admitted.items():
            if site.flower_key == key:
                return name
        if key in {as_flower_keeps_it(text) for text in settings.revoked_keys}:
            raise Refused("site_revoked")
        raise Refused("site_unknown")
