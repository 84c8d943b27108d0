"""Generations that private rounds were trained on: kept, so that an audit can replay those rounds.

A generation stays as long as the order of a round on it lies beside the ledger, whatever is taken in after it. A purge
of a patient removes them all the same: the patient's wish goes before the audit's.
"""

from pathlib import Path

from client.settings import SiteFolder
from multimix.data.store import CURRENT, INDEX, Store, open_store
from multimix.errors import Refused, StoreError
from multimix.privacy.history import reservations
from multimix.privacy.ledger import read_ledger
from multimix.privacy.reservations import Reservations


def fingerprints_in_use(site: SiteFolder) -> frozenset[str] | None:
    """Return the fingerprints of the data of all rounds that can be replayed; None where the ledger cannot be read."""
    if site.settings.population is None:
        return frozenset()
    try:
        entries = read_ledger(site.ledger).entries
    except Refused as refused:
        return frozenset() if refused.reason == "ledger_missing" else None
    kept = Reservations(site.ledger)
    bindings = (reservation.binding for reservation in reservations(entries))
    return frozenset(binding.data_fingerprint for binding in bindings if kept.has_order(binding))


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
