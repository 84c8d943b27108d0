"""Generations that private rounds were trained on: kept, so that an audit can replay those rounds.

A generation stays as long as the order of a round on it lies beside the ledger, whatever is taken in after it. A purge
of a patient removes them all the same: the patient's wish goes before the audit's.
"""

from pathlib import Path

from client.published import fingerprints_of_ledger, published_in_use
from client.settings import SiteFolder
from multimix.data.store import CURRENT, INDEX, Store, open_store
from multimix.errors import Refused, StoreError


def fingerprints_in_use(site: SiteFolder) -> frozenset[str] | None:
    """Return the fingerprints of the data of all rounds that can be replayed; None where nobody can tell.

    Where the agent is another user, it has written them down.
    """
    if site.settings.population is None:
        return frozenset()
    published = None if site.settings.agent.folder is None else published_in_use(site)
    return fingerprints_of_ledger(site) if published is None else published


def in_use(generation: Path, fingerprints: frozenset[str] | None) -> bool:
    """Whether a round on this generation can be replayed; one that cannot be opened is of no use."""
    if fingerprints is None:
        return True
    if not fingerprints:
        return False
    try:
        return open_store(generation).fingerprint in fingerprints
    except StoreError:
        return False


def pinned_store(store: Path, fingerprint: str) -> Store:
    """Open the generation with this fingerprint, or a store without generations that has it.

    Raises:
        Refused: `generation_gone`: it was replaced long ago, or a patient in it was purged.
    """
    folders = [path.parent for path in store.glob(f"*/{INDEX}") if path.parent.name != CURRENT]
    for folder in sorted(folders, reverse=True) or [store]:
        try:
            opened = open_store(folder)
        except StoreError:
            continue
        if opened.fingerprint == fingerprint:
            return opened
    raise Refused("generation_gone")
