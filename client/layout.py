"""Where the parts of a site lie once three users share it, and making an existing site into such a one.

`site.toml` says it, so that `join`, `intake`, the agent and `multimix-site units` agree.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.ownership import rewrite
from client.settings import FILE, SiteFolder
from client.site_text import Value, with_keys
from multimix.errors import SiteError
from multimix.locks import held

RUN: Final = Path("/run")  # emptied at each start of the machine, so systemd makes what lies there
_SOCKET: Final = RUN / "multimix" / "agent.sock"
_HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user")))  # by ProtectHome
_OF_AGENT: Final = (
    *("activity.jsonl", "activity.jsonl.1", "control.json", "control.lock", "card.secret", "in-use.json"),
    *("metrics.prom", "agent.lock"),
)


@dataclass(frozen=True)
class Layout:
    """The folders of a site and the users who own them; all paths are absolute."""

    site: Path
    agent: Path
    ledger: Path
    connector: Path
    socket: Path
    metrics: Path | None  # None: with the agent's log, where nobody else reads it
    user: str  # what the three names begin with

    @property
    def connector_user(self) -> str:
        """Who runs the connector; its group may use the socket."""
        return f"{self.user}-connector"

    @property
    def agent_user(self) -> str:
        """Who runs the agent; its group may read the store."""
        return f"{self.user}-agent"

    @property
    def runtime_directory(self) -> str:
        """The socket's folder as systemd counts it, "" where it does not lie below /run."""
        folder = self.socket.parent
        return str(folder.relative_to(RUN)) if folder.is_relative_to(RUN) else ""

    @property
    def writable(self) -> tuple[Path, ...]:
        """What the agent writes to."""
        made_by_systemd = bool(self.runtime_directory)
        outside = (self.ledger, self.metrics, None if made_by_systemd else self.socket.parent)
        return (self.agent, *(path for path in outside if path and not path.is_relative_to(self.agent)))


def layout_of(site: SiteFolder, *, user: str, agent: Path | None, connector: Path | None) -> Layout:
    """Return where the parts are to lie: as given, else as site.toml says, else beside the site.

    Raises:
        SiteError: `folder_inside`, `folder_hidden`.
    """
    path, said = site.path.resolve(), site.settings.agent
    agent = (agent or path / (said.folder or path.with_name(f"{path.name}-agent"))).resolve()
    connector = (connector or path / (said.connector_folder or path.with_name(f"{path.name}-connector"))).resolve()
    named = site.settings.population.ledger if site.settings.population else None
    layout = Layout(
        site=path,
        agent=agent,
        ledger=(path / named).resolve() if named else agent / "ledger",
        connector=connector,
        socket=(path / (said.socket or _SOCKET)).resolve(),
        metrics=(path / said.metrics_folder).resolve() if said.metrics_folder else None,
        user=user,
    )
    agents = (*layout.writable, layout.socket.parent)
    pairs = [(path, each) for each in (*agents, connector)] + [(connector, each) for each in agents]
    for one, other in pairs:
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise SiteError(
                "folder_inside", "Site, agent and connector need folders of their own, none within another: each has "
                "one owner. Put them beside each other.",
            )  # fmt: skip
    check_visible(path, *layout.writable, layout.connector)
    return layout


def check_visible(*paths: Path) -> None:
    """Refuse what the units hide from their own services: SiteError `folder_hidden`."""
    if any(path.is_relative_to(hidden) for path in paths for hidden in _HIDDEN):
        raise SiteError(
            "folder_hidden",
            "The services see nothing below /home and /root (ProtectHome). Put the site below /srv and install "
            "multimix below /opt; say where with --site and --bin.",
        )


def unsaid(site: SiteFolder, layout: Layout) -> dict[str, dict[str, Value]]:
    """Return what site.toml does not say yet of this layout, by section; "" is its top."""
    said = site.settings.agent
    agent: dict[str, tuple[object, Value]] = {
        "folder": (said.folder, str(layout.agent)),
        "connector_folder": (said.connector_folder, str(layout.connector)),
        "connector_group": (said.connector_group, layout.connector_user),
        "socket": (said.socket, str(layout.socket)),
    }
    top: dict[str, tuple[object, Value]] = {"store_group": (site.settings.store_group, layout.agent_user)}
    differing = {
        section: {key: wanted for key, (now, wanted) in keys.items() if str(now) != wanted}
        for section, keys in (("", top), ("agent", agent))
    }
    return {section: keys for section, keys in differing.items() if keys}


def settle(site: SiteFolder, layout: Layout) -> None:
    """Move what agent and connector have to their own folders, then have site.toml say so; again it goes on.

    Raises:
        SiteError: `still_running`, `folder_taken`, `other_disk`, as `with_keys` and `rewrite`.
        OSError: something cannot be moved.
    """
    text = (site.path / FILE).read_text("utf-8")
    for section, keys in unsaid(site, layout).items():
        text = with_keys(text, section, keys)
    with _stopped(site.agent / "agent.lock"), _stopped(site.connector / "connect.lock"):
        moves = [(site.agent / name, layout.agent / name) for name in _OF_AGENT]
        moves += [(site.ledger, layout.ledger)]
        moves += [(file, layout.connector / file.name) for file in _files(site.connector)]
        due = [(old, new) for old, new in moves if old.resolve() != new.resolve() and old.exists()]
        if any(new.exists() for _, new in due):
            raise SiteError(
                "folder_taken", "A ledger, key or log lies in the new place already, and another one in the old. Find "
                "out which is the newer one, and put the other away.",
            )  # fmt: skip
        for old, new in due:
            _move(old, new)
        if site.connector.resolve() != layout.connector and site.connector.is_dir():
            site.connector.rmdir()  # empty by now
        rewrite(site.path / FILE, text.encode())


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _move(old: Path, new: Path) -> None:
    new.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if old.stat().st_dev != new.parent.stat().st_dev:  # a copy that breaks off would leave two ledgers
        raise SiteError("other_disk", "The new folders are on another disk than the site. Choose them on the same one.")
    old.rename(new)


@contextmanager
def _stopped(lock: Path) -> Iterator[None]:
    """Hold the lock that a running program would hold: SiteError `still_running`. Without a lock none ever ran."""
    if not os.path.lexists(lock):
        yield
        return
    with held(lock, busy=SiteError("still_running", "Agent or connector runs. Stop it, then do this again.")):
        yield
