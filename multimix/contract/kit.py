"""What the coordinator's kit tells a site, and the proof that it is the coordinator who says it.

A kit is a few small files: `kit.json` (`Kit`), `ca.pem`, `site.toml` (what to fill in), `SHA256SUMS` over them, and
`SHA256SUMS.sig`: the coordinator's Ed25519 signature over the sums. The key that verifies it is in the kit itself, so
a kit proves only that it is whole; that it is the right one, two people find out by comparing the key's fingerprint
over a channel that is not the kit's. There is no secret in it.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, BaseModel, ValidationError, field_validator

from multimix.config import Frozen
from multimix.contract.messages import PROTOCOL, Name
from multimix.contract.node_key import fingerprint
from multimix.contract.privacy import Base64, Sha256
from multimix.contract.signing import public_key
from multimix.errors import SiteError

KIT: Final = "kit.json"
AUTHORITY: Final = "ca.pem"
HINTS: Final = "site.toml"
SUMS: Final = "SHA256SUMS"
SIGNATURE: Final = "SHA256SUMS.sig"
SUMMED: Final = (KIT, AUTHORITY, HINTS)
FILES: Final = (*SUMMED, SUMS, SIGNATURE)
_CONTEXT: Final = b"multimix kit\n"  # so that no other signature of this key is one of a kit
_HOST: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
_HIGHEST_PORT: Final = 0xFFFF
_ADDRESS: Final = re.compile(rf"(?P<host>{_HOST}):(?P<port>[1-9][0-9]{{0,4}})")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port", an IPv6 address without its brackets; ValueError otherwise."""
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > _HIGHEST_PORT:
        raise ValueError("an address is host:port")
    return found["host"].strip("[]"), int(found["port"])


def _checked_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, AfterValidator(_checked_address)]


class Kit(Frozen):
    """What a kit says: who calls whom where, and whose word counts."""

    protocol: int = PROTOCOL
    federation: Name
    site: Name
    address: Address  # where the site reaches the server, by HTTPS
    coordinator_key: Base64  # signs plans and this kit; Ed25519
    ca_sha256: Sha256  # of ca.pem

    @field_validator("coordinator_key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        public_key(text)
        return text

    @property
    def fingerprint(self) -> str:
        """Of the coordinator's key: what is compared over the telephone."""
        return coordinator_fingerprint(self.coordinator_key)


class _AnyKit(BaseModel):
    """What a kit of every protocol says."""

    protocol: int


def coordinator_fingerprint(key: str) -> str:
    """Return the fingerprint of a coordinator's public key (base64, Ed25519)."""
    return fingerprint(base64.b64decode(key, validate=True))


def signed_sums(files: Mapping[str, bytes], key: Ed25519PrivateKey) -> dict[str, bytes]:
    """Return `SHA256SUMS` over the files, as sha256sum writes it, and its signature."""
    sums = _sums(files)
    return {SUMS: sums, SIGNATURE: base64.b64encode(key.sign(_CONTEXT + sums)) + b"\n"}


def verified_kit(files: Mapping[str, bytes]) -> Kit:
    """Return what the kit says once everything in it agrees; nothing in it is believed before.

    Raises:
        SiteError: `kit_incomplete`, `kit_altered`, `kit_protocol`, `kit_malformed`, `kit_signature`.
    """
    if set(files) != set(FILES):
        raise SiteError("kit_incomplete", f"A kit holds exactly {', '.join(FILES)}. Ask the coordinator for it again.")
    if files[SUMS] != _sums({name: files[name] for name in SUMMED}):
        raise SiteError("kit_altered", "The kit's files are not those that its checksums name. Ask for it again.")
    kit = _read(files[KIT])
    try:
        signature = base64.b64decode(files[SIGNATURE].strip(), validate=True)
        public_key(kit.coordinator_key).verify(signature, _CONTEXT + files[SUMS])
    except (InvalidSignature, ValueError):
        raise SiteError("kit_signature", "The kit is not signed by the key that it names. Ask for it again.") from None
    if hashlib.sha256(files[AUTHORITY]).hexdigest() != kit.ca_sha256:
        raise SiteError("kit_altered", "The kit's authority is not the one that kit.json names. Ask for it again.")
    return kit


def _read(document: bytes) -> Kit:
    try:
        protocol = _AnyKit.model_validate_json(document).protocol
        if protocol != PROTOCOL:
            raise SiteError(
                "kit_protocol",
                f"The kit speaks protocol {protocol}, this installation {PROTOCOL}. Install the version that the "
                "coordinator runs.",
            )
        return Kit.model_validate_json(document)
    except ValidationError:
        raise SiteError(
            "kit_malformed", "kit.json of the kit cannot be read. Ask the coordinator for it again."
        ) from None


def _sums(files: Mapping[str, bytes]) -> bytes:
    """Return lines of `sha256sum`, in the order of the names."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return "".join(lines).encode("ascii")
