"""The key that a site's connector shows to Flower's SuperLink: ECDSA on a NIST curve, in OpenSSH's forms.

`flwr supernode register` reads the public half with `load_ssh_public_key`, `flower-supernode` the private half with
`load_ssh_private_key` (flwr 1.41, `cli/supernode/register.py`, `supernode/cli/flower_supernode.py`). The SuperLink
keeps and reports public keys as PEM.
"""

import hashlib
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

PREFIX: Final = "ecdsa-sha2-nistp"
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_LONGEST: Final = 2048  # characters of a public key with its comment
_GROUPS: Final = 8  # of four hexadecimal characters: 128 bits, beyond any search for a second key that shares them


def new_node_key() -> bytes:
    """Make a private key on P-384, as OpenSSH writes it, without a passphrase: the connector starts unattended."""
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def public_half(private: bytes) -> str:
    """Return the public key of a private one; ValueError if it is none of `new_node_key`."""
    try:
        key = load_ssh_private_key(private, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("no private key of a node") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("no private key of a node")  # noqa: TRY004  (wrong content, not a wrong type of ours)
    return _text(key.public_key())


def node_key(text: str) -> str:
    """Return a public key in the one form in which keys are compared, without its comment; ValueError otherwise."""
    return _text(_loaded(text))


def as_flower_keeps_it(text: str) -> bytes:
    """Return a public key as the SuperLink stores it and `Grid.get_nodes()` names it: PEM; ValueError otherwise."""
    return _loaded(text).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def node_fingerprint(text: str) -> str:
    """Return what two people compare of a node's public key; ValueError if it is none."""
    return fingerprint(_loaded(text).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def fingerprint(public: bytes) -> str:
    """Return half of the SHA-256 of a public key, in groups that can be read aloud."""
    digest = hashlib.sha256(public).hexdigest()
    return "-".join(digest[4 * group : 4 * group + 4] for group in range(_GROUPS))


def same_fingerprint(one: str, other: str) -> bool:
    """Compare two fingerprints as a person would: neither case nor separators matter."""
    one, other = ("".join(filter(str.isalnum, text)).lower() for text in (one, other))
    return one == other


def _loaded(text: str) -> ec.EllipticCurvePublicKey:
    if len(text) > _LONGEST or len(text.splitlines()) != 1:
        raise ValueError("a node's public key is one line")
    try:
        key = load_ssh_public_key(text.strip().encode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("no public key in OpenSSH's form") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise ValueError("not an ECDSA key on a NIST curve")  # noqa: TRY004  (as above)
    return key


def _text(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
