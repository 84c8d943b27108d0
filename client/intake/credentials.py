"""Secrets in files of their own (mode 0600, never in the settings) and the TLS context made with them."""

import ssl
from pathlib import Path

from client.intake.dicomweb import PacsError


def read_secret(path: Path) -> str:
    """Return the one line in a file that only its owner can read.

    Raises:
        PacsError: `pacs_secret` where it is missing, empty, not text, or open to others.
    """
    try:
        text = path.read_text("utf-8").strip() if _is_private(path) else ""
    except (OSError, ValueError):
        text = ""
    if not text or not text.isprintable():
        raise PacsError("pacs_secret")
    return text


def read_token(path: Path) -> str:
    """Return a bearer token, which travels in a header and so is ASCII; errors as `read_secret`."""
    token = read_secret(path)
    if not token.isascii():
        raise PacsError("pacs_secret")
    return token


def tls_context(ca_file: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Trust the hospital's authority alone if one is given, else the system's; show our certificate if there is one.

    Raises:
        PacsError: `pacs_tls` for unusable certificates, `pacs_secret` for a key that others can read.
    """
    reason = "pacs_tls"
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if certificate is None:
            return context
        if _is_private(key or certificate):
            context.load_cert_chain(certificate, key, password="")  # a locked key fails instead of prompting
            return context
        reason = "pacs_secret"
    except (OSError, ValueError):
        pass
    raise PacsError(reason)


def _is_private(path: Path) -> bool:
    return path.stat().st_mode & 0o077 == 0
