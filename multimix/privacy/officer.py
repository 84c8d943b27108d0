"""The privacy officer's decisions: signed with the officer's own key, at one point of one ledger, checked on every use.

The key's private half stays with the officer; its public half stands in `site.toml`. An entry under another key, or
lifted from another ledger or place, decides nothing.
"""

import base64

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from multimix.contract.signing import public_text
from multimix.errors import Refused
from multimix.privacy.entries import Entry, Officer, OfficerAction, officer_text
from multimix.privacy.ledger import Ledger


def decide(
    ledger: Ledger, action: OfficerAction, text: str, key: Ed25519PrivateKey, *, officer_key: str | None
) -> Entry:
    """Sign a decision and enter it; Refused `officer_unknown` unless the key is the one that the site names."""
    if officer_key is None or public_text(key) != officer_key:
        raise Refused("officer_unknown")
    signed = officer_text(ledger.site, ledger.population, ledger.head.sha256, action, text)
    signature = base64.b64encode(key.sign(signed.encode())).decode()
    return ledger.append(Officer(action=action, text=text, officer_key=officer_key, signature=signature))


def signed_by_officer(entry: Entry, site: str, population: str, officer_key: str | None) -> bool:
    """Whether an entry is a decision of this officer for this population, made at this place of its ledger."""
    body = entry.body
    if not isinstance(body, Officer) or officer_key is None or body.officer_key != officer_key:
        return False
    signed = officer_text(site, population, entry.previous, body.action, body.text)
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(officer_key))
        key.verify(base64.b64decode(body.signature), signed.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
