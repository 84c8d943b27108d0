"""What the agent tells intake, which may not read the ledger: the data of rounds that can still be replayed.

`in-use.json` in the agent's folder holds fingerprints of generations and nothing else. The agent writes it when it
starts, as an order begins and after it; intake keeps the generations that are named there.
"""

import logging
from typing import Final

from pydantic import ValidationError

from client.settings import SiteFolder
from multimix.config import Frozen
from multimix.contract.messages import canonical_json
from multimix.data.store import open_store
from multimix.errors import Refused, StoreError
from multimix.files import write_atomically
from multimix.privacy.history import reservations
from multimix.privacy.ledger import read_ledger
from multimix.privacy.reservations import Reservations

log = logging.getLogger("multimix.agent")

FILE: Final = "in-use.json"
_READABLE: Final = 0o640  # by the agent's group, of which intake is a member


class InUse(Frozen):
    """Fingerprints of generations of the store."""

    fingerprints: tuple[str, ...] = ()


def publish_in_use(site: SiteFolder) -> None:
    """Write which generations are in use, the current one among them; where that fails, training goes on.

    Where the ledger cannot be read, what was written before stays.
    """
    if site.settings.agent.folder is None:
        return  # intake is the same user and reads the ledger
    try:
        named = fingerprints_of_ledger(site)
        if named is not None:
            document = InUse(fingerprints=tuple(sorted(named | _current(site))))
            write_atomically(site.agent / FILE, canonical_json(document).encode(), mode=_READABLE)
    except OSError as error:
        log.warning("in_use_not_written: %s", type(error).__name__)


def published_in_use(site: SiteFolder) -> frozenset[str] | None:
    """Return what the agent wrote; None where there is nothing that can be read."""
    try:
        return frozenset(InUse.model_validate_json((site.agent / FILE).read_bytes()).fingerprints)
    except (OSError, ValidationError):
        return None


def fingerprints_of_ledger(site: SiteFolder) -> frozenset[str] | None:
    """Return the fingerprints of the data of all rounds that can be replayed; None where the ledger cannot be read."""
    try:
        entries = read_ledger(site.ledger).entries
    except Refused as refused:
        return frozenset() if refused.reason == "ledger_missing" else None
    kept = Reservations(site.ledger)
    bindings = (reservation.binding for reservation in reservations(entries))
    return frozenset(binding.data_fingerprint for binding in bindings if kept.has_order(binding))


def _current(site: SiteFolder) -> frozenset[str]:
    """Return the data that the next round trains on: were the agent killed in it, nothing else would name it."""
    try:
        return frozenset((open_store(site.store).fingerprint,))
    except StoreError:
        return frozenset()
