"""The site that the agent serves, kept warm: opened once, and again when its settings or its images have changed.

An order keeps the site that it began with, so the generation of the store is pinned for the round.
"""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.agent.service import Served
from client.hospital import local_site
from client.replays import Replays
from client.settings import SiteFolder, SiteSettings, open_site
from client.site import LocalSite
from multimix.data.store import CURRENT, INDEX


@dataclass(frozen=True)
class _State:
    """What the open site was opened from."""

    settings: SiteSettings
    generation: Path
    written_ns: int


@dataclass
class WarmSite:
    """A site folder as what the agent serves."""

    path: Path
    _replays: Replays = field(default_factory=Replays)  # outlives a site that is opened again
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _state: _State | None = None
    _site: LocalSite | None = None

    def served(self) -> Served:
        """Return the site as it is now; SiteError as `open_site` and `local_site`."""
        folder = open_site(self.path)
        with self._lock:
            state = _state_of(folder)
            if self._site is None or state != self._state:
                opened = local_site(folder, device=folder.settings.agent.device)
                self._site, self._state = replace(opened, _replays=self._replays), state
            site = self._site
        most_bytes = folder.settings.agent.maximum_weights_mib << 20
        return Served(site, site.coordinator, folder.settings.policy, most_bytes)


def _state_of(folder: SiteFolder) -> _State:
    current = folder.store / CURRENT
    generation = current.resolve() if current.is_symlink() else folder.store
    index = generation / INDEX
    return _State(folder.settings, generation, index.stat().st_mtime_ns if index.exists() else 0)
