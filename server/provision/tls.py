"""Which certificate is really shown: a file replaced is not served before the server restarts and the proxy reloads."""

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from multimix.contract.kit import split_address
from server.provision.folder import FederationFolder

_PATIENCE_S: Final = 5.0
_RESTART: Final = "restart the server (systemctl restart multimix-server)"
_RELOAD: Final = "reload the proxy (systemctl reload nginx)"


@dataclass(frozen=True)
class Shown:
    """What one address shows."""

    address: str
    certificate: x509.Certificate | None  # None: nobody answers there, as seen from this machine
    remedy: str  # how the certificate on disk comes to be shown


Look = Callable[[FederationFolder], list[Shown]]


def shown(folder: FederationFolder) -> list[Shown]:
    """Return what the SuperLink shows on this machine, and what sites see at the federation's address."""
    from server.nodes import local_address  # noqa: PLC0415  (flwr)

    local, public = local_address(folder), folder.settings.address
    found = [Shown(local, _certificate(local), _RESTART)]
    return found if local == public else [*found, Shown(public, _certificate(public), _RELOAD)]


def _certificate(address: str) -> x509.Certificate | None:
    """Return the certificate shown at an address, trusted or not."""
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is looked at, and nothing is said over this connection
    try:
        with (
            socket.create_connection((host, port), timeout=_PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):  # no such host, no listener, no TLS, no certificate
        return None
