"""Pseudonyms: whatever could name a person or a study becomes a keyed hash before it is stored or compared.

HMAC-SHA256 under the site's secret, cut to 128 bits. Without the secret a pseudonym cannot be recomputed from a
guessed identifier; with it two files of one patient meet. Purposes are separated, so that an accession number
equal to a patient's number does not look the same.
"""

import hashlib
import hmac
import secrets
import stat
from pathlib import Path
from typing import Final

from multimix.errors import SiteError
from multimix.files import write_atomically

SECRET_BYTES: Final = 32
HEX_DIGITS: Final = 32


class Pseudonyms:
    """Keyed hashes of one site, as 32 hexadecimal digits."""

    def __init__(self, secret: bytes) -> None:
        """Keep the secret; it is never shown."""
        if not secret:
            raise SiteError("pseudonym_key_invalid", "The site's secret is empty. Restore it or start a new site.")
        self._secret = secret

    def __repr__(self) -> str:
        """Hide the secret."""
        return "Pseudonyms(...)"

    def of(self, purpose: str, *parts: str) -> str:
        """Return the pseudonym of the parts for a purpose."""
        return self._digest(purpose, parts).hex()[:HEX_DIGITS]

    def fraction(self, purpose: str, *parts: str) -> float:
        """Return a number in [0, 1) that only the secret and the parts decide."""
        return (int.from_bytes(self._digest(purpose, parts)[:7], "big") >> 3) / 2**53  # of 56 bits some round to 1

    def content(self, *parts: bytes) -> str:
        """Return the keyed hash of contents, faster than HMAC for megabytes (keyed BLAKE2b)."""
        digest = hashlib.blake2b(key=hashlib.sha256(self._secret).digest(), digest_size=HEX_DIGITS // 2)
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()

    def _digest(self, purpose: str, parts: tuple[str, ...]) -> bytes:
        message = b"".join(
            len(data).to_bytes(8, "little") + data
            for data in (part.encode("utf-8", "surrogatepass") for part in (purpose, *parts))
        )
        return hmac.digest(self._secret, message, "sha256")


def read_or_make_secret(path: Path) -> bytes:
    """Read the site's secret, or make one that only this user can read.

    Raises:
        SiteError: `secret_unusable`, or `secret_not_private` if others may read the file.
    """
    try:
        if not path.exists():
            write_atomically(path, secrets.token_bytes(SECRET_BYTES))
        mode = stat.S_IMODE(path.stat().st_mode)
        secret = path.read_bytes()
    except OSError:
        raise SiteError(
            "secret_unusable", "The site's secret can be neither read nor made. Check the folder and its owner."
        ) from None
    if mode & 0o077:
        raise SiteError(
            "secret_not_private",
            f"Others may read the site's secret (mode {mode:04o}). Set mode 0600, and think about who read it.",
        )
    if len(secret) < SECRET_BYTES:
        raise SiteError("secret_unusable", f"The site's secret has {len(secret)} bytes, it needs {SECRET_BYTES}.")
    return secret
