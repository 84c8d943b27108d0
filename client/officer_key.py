"""Key files of officers and auditors: PEM, Ed25519, readable by their owner alone."""

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from multimix.errors import SiteError


def new_key(file: Path) -> Ed25519PrivateKey:
    """Make a private key and write it to a file that was not there.

    Raises:
        SiteError: `officer_key_exists`, `officer_key_unwritable`.
    """
    made = Ed25519PrivateKey.generate()
    _write_new(file, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


def read_key(file: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        SiteError: `officer_key_unusable`; `officer_key_not_private` where others may read it.
    """
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            signer = load_pem_private_key(opened.read(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise SiteError("officer_key_unusable", "This file is no private key of `multimix-site officer key`.") from None
    if not isinstance(signer, Ed25519PrivateKey):
        raise SiteError("officer_key_unusable", "This file is not an Ed25519 private key.")
    if mode & 0o077:
        raise SiteError(
            "officer_key_not_private",
            f"Others may read the officer's key (mode {mode:04o}). Make a new one, unless nobody else could get at it: "
            "then set its mode to 0600.",
        )
    return signer


def _write_new(file: Path, data: bytes) -> None:
    """Write a file that was not there, for this user only."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise SiteError("officer_key_exists", "A file is there already; no key is overwritten. Give another.") from None
    except OSError:
        raise SiteError("officer_key_unwritable", "The key cannot be written there. Give another --out.") from None
