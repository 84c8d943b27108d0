"""Plans are signed by the coordinator with Ed25519 (RFC 8032) and checked at the site before anything else."""

import base64
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel, ValidationError

from multimix.contract.messages import PROTOCOL, RoundPlan, canonical_json, sha256_text
from multimix.contract.privacy import Countersignature
from multimix.errors import Refused
from multimix.randomness import stream


@dataclass(frozen=True)
class SignedPlan:
    """The canonical text of a plan and its signature (base64); beside it, the ledger's head that the server knows."""

    document: str
    signature: str
    countersigned: Countersignature | None = None

    @property
    def sha256(self) -> str:
        """Hash of the plan's text: what reports are bound to."""
        return sha256_text(self.document)


class _AnyPlan(BaseModel):
    """What a plan of every protocol says; what a later one adds is not for this version to judge."""

    protocol: int


def sign(plan: RoundPlan, key: Ed25519PrivateKey) -> SignedPlan:
    """Sign a plan."""
    document = canonical_json(plan)
    return SignedPlan(document, base64.b64encode(key.sign(document.encode())).decode())


def verified(signed: SignedPlan, key: Ed25519PublicKey) -> RoundPlan:
    """Return the plan, or refuse: `plan_signature`, `protocol_unknown`, `plan_malformed`."""
    try:
        key.verify(base64.b64decode(signed.signature, validate=True), signed.document.encode())
    except (InvalidSignature, ValueError):
        raise Refused("plan_signature") from None
    try:
        asked = _AnyPlan.model_validate_json(signed.document).protocol
        if asked != PROTOCOL:
            raise Refused("protocol_unknown", f"asked {asked}, spoken {PROTOCOL}")
        return RoundPlan.model_validate_json(signed.document)
    except ValidationError:
        raise Refused("plan_malformed") from None


def public_text(key: Ed25519PrivateKey) -> str:
    """Return the public half as base64, as it stands in a site's settings."""
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def public_key(text: str) -> Ed25519PublicKey:
    """Read a public key from base64; ValueError if it is none."""
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))


def simulation_key(seed: int) -> Ed25519PrivateKey:
    """Return the coordinator's key of a simulation: known to all, derived from the seed, worth nothing."""
    return Ed25519PrivateKey.from_private_bytes(stream(seed, "simulation coordinator").bytes(32))
