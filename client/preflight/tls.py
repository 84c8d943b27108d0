"""Is it really the server that answers, or a proxy that opens TLS on the way?

Many hospitals inspect TLS: a proxy answers in the server's name with a certificate of the hospital's own authority.
The pinned authority of the coordinator's kit shows that. Findings name the authority that signed what the network
shows (a company or a product) and the certificate's SHA-256 fingerprint.
"""

import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from client.preflight.lines import Line
from multimix.errors import SiteError

_MOST_HEAD_BYTES = 65_536
_MOST_NAME_CHARACTERS = 64
_EXPIRES_SOON_S = 14 * 86_400
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_IP = 9, 10, 62, 64  # OpenSSL's X509_V_ERR_*
_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
_CLOCK = "Look at this machine's clock first (`timedatectl`), and set it if it is wrong."
_RENEW = "If it is right: the coordinator runs `multimix-server rotate` and restarts the server."
_RENEW_AUTHORITY = "If it is right: the coordinator runs `multimix-server rotate --ca` and sends this site a new kit."
_EXEMPT = "Ask the network team to exempt the server's name from TLS inspection; if they do not inspect, ask the "


class Stopped(Exception):  # noqa: N818  (a finding that ends the checks, not an error)
    """A step failed, and the steps after it cannot be tried; `line` says why."""

    def __init__(self, name: str, finding: str, fix: str) -> None:
        """Make the FAIL line."""
        super().__init__()
        self.line = Line(name, "FAIL", finding, fix)


def trust(ca: bytes | None) -> ssl.SSLContext:
    """Trust only the authorities in the PEM `ca`, or the machine's own where there is none; SiteError otherwise."""
    if ca is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the host's name
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise SiteError("bad_authority", "The authority in the coordinator's kit is not a PEM certificate.") from None
    return context


def shake_hands(
    connect: Callable[[], socket.socket], host: str, context: ssl.SSLContext, *, pinned: bool, timeout_s: float
) -> tuple[list[Line], str | None]:
    """Verify who answers, and return its lines and its Date header if it speaks HTTP; `Stopped` if it is not trusted.

    `connect` is called once, and once more to read the certificate where it is not trusted.
    """
    connection = connect()
    try:
        with connection, context.wrap_socket(connection, server_hostname=host) as secure:
            lines = _trusted(_read(secure), pinned=pinned)
            request = f"HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("ascii")
            return lines, _date(exchange(secure, request, timeout_s))
    except ssl.SSLCertVerificationError as error:
        raise _distrust(error.verify_code, _presented(connect, host), context, pinned=pinned) from None
    except ssl.SSLEOFError:
        raise _closed() from None
    except ssl.SSLError as error:
        raise _no_handshake(error.reason or "") from None
    except TimeoutError:
        raise Stopped(
            "tls",
            f"The server accepted the connection and then said nothing for {timeout_s:g} s (tls_timeout).",
            "See that the port is that of the kit; then ask the network team whether a firewall holds the connection.",
        ) from None
    except OSError:
        raise _closed() from None


def exchange(connection: socket.socket, request: bytes, timeout_s: float) -> bytes:
    """Send a request and return the head of the answer; what came until then if it ends, breaks or takes too long."""
    answer = b""
    deadline = time.monotonic() + timeout_s
    try:
        connection.sendall(request)
        while b"\r\n\r\n" not in answer and len(answer) < _MOST_HEAD_BYTES:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            received = connection.recv(4096)
            if not received:
                break
            answer += received
        connection.settimeout(timeout_s)
    except OSError:  # TLS errors too
        pass
    return answer


def _date(head: bytes) -> str | None:
    if not head.startswith(b"HTTP/"):
        return None
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "date":
            return value.strip()
    return None


def _trusted(certificate: x509.Certificate | None, *, pinned: bool) -> list[Line]:
    if pinned:
        lines = [Line("tls", "PASS", f"The kit's authority signed the server's certificate ({_shown(certificate)}).")]
    else:
        lines = [
            Line(
                "tls",
                "WARN",
                f"This machine trusts the server's certificate ({_shown(certificate)}). If that authority is the "
                "hospital's own TLS inspection, the traffic is read on the way, and this check cannot see it.",
                "Pin the authority of the coordinator's kit in the site's configuration.",
            )
        ]
    left_s = (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds() if certificate else 0
    if left_s < _EXPIRES_SOON_S:
        finding = f"The server's certificate expires in {left_s / 86_400:.0f} day(s)."
        lines.append(Line("tls", "WARN", finding, "Tell the coordinator to renew it."))
    return lines


def _distrust(
    verify_code: int, certificate: x509.Certificate | None, context: ssl.SSLContext, *, pinned: bool
) -> Stopped:
    """Tell apart why the chain was not verified; OpenSSL looks at the authority before host name and dates."""
    shown = _shown(certificate)
    if verify_code in {_EXPIRED, _NOT_YET_VALID}:
        return _out_of_date(certificate, context, datetime.now(UTC), expired=verify_code == _EXPIRED)
    if verify_code in {_WRONG_HOST, _WRONG_IP}:
        finding = f"The server's certificate is for another name than the one asked for ({shown}) (tls_wrong_host)."
        return Stopped("tls", finding, "Use the server's name exactly as in the kit; otherwise tell the coordinator.")
    if pinned:
        finding = (
            "Another authority than the kit's signed the certificate that this network shows: a TLS-inspecting proxy "
            f"stands between, or the kit is old ({shown}) (tls_intercepted)."
        )
        return Stopped("tls", finding, f"{_EXEMPT}coordinator for a new kit, by telephone rather than by this network.")
    finding = f"No authority that this machine trusts signed the server's certificate ({shown}) (tls_untrusted)."
    return Stopped("tls", finding, "Pin the authority of the coordinator's kit in the site's configuration.")


def _out_of_date(
    certificate: x509.Certificate | None, context: ssl.SSLContext, now: datetime, *, expired: bool
) -> Stopped:
    """Name the certificate, its date and this machine's: either may be wrong, and only a person can tell which."""
    name, blamed, renewal = _blamed(certificate, context, now)
    dated = "is out of date"
    if blamed is not None and expired:
        dated = f"was valid until {_time(blamed.not_valid_after_utc)}"
    elif blamed is not None:
        dated = f"is valid from {_time(blamed.not_valid_before_utc)}"
    reason = "tls_expired" if expired else "tls_not_yet_valid"
    clock = f"this machine's clock, which may be wrong, says {_time(now)}"
    return Stopped("tls", f"{name} {dated}, and {clock} ({_shown(certificate)}) ({reason}).", f"{_CLOCK} {renewal}")


def _blamed(
    certificate: x509.Certificate | None, context: ssl.SSLContext, now: datetime
) -> tuple[str, x509.Certificate | None, str]:
    """Return which certificate is out of date, in words too, and how the coordinator renews it."""
    if certificate is not None and not _is_valid(certificate, now):
        return "The server's certificate", certificate, _RENEW
    for each in context.get_ca_certs(binary_form=True):
        trusted = x509.load_der_x509_certificate(each)
        if certificate is not None and trusted.subject == certificate.issuer:
            return "The certificate of the federation's authority", trusted, _RENEW_AUTHORITY
    return "A certificate of the server or of its authority", None, _RENEW


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _no_handshake(reason: str) -> Stopped:
    if reason in _NOT_TLS:
        return Stopped(
            "tls",
            "The server answers in plain text, without TLS: anyone on the way could read and change it (tls_absent).",
            "See that the port is that of the kit, and tell the coordinator. Do not go on without TLS.",
        )
    return Stopped(
        "tls",
        "This machine and the server could not agree on a TLS version or cipher (tls_failed).",
        "Ask the network team whether an old proxy stands between; otherwise tell the coordinator.",
    )


def _closed() -> Stopped:
    return Stopped(
        "tls",
        "The connection was closed during the TLS handshake (tls_closed).",
        "Firewalls do that to names they do not allow: ask the network team to allow the server's name and port.",
    )


def _presented(connect: Callable[[], socket.socket], host: str) -> x509.Certificate | None:
    """Read, without trusting it, the certificate that the network shows; nothing is sent after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connect() as connection, context.wrap_socket(connection, server_hostname=host) as secure:
            return _read(secure)
    except (OSError, Stopped):
        return None


def _read(secure: ssl.SSLSocket) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    except ValueError:
        return None


def _shown(certificate: x509.Certificate | None) -> str:
    if certificate is None:
        return "the certificate could not be read"
    fingerprint = certificate.fingerprint(SHA256()).hex(":").upper()
    return f"signed by {_issuer(certificate)}, SHA-256 {fingerprint}"


def _issuer(certificate: x509.Certificate) -> str:
    """Return organisation and common name of the authority, cut to harmless text: whoever answers chose them."""
    try:
        wanted = (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
        values = [str(found[0].value) for oid in wanted if (found := certificate.issuer.get_attributes_for_oid(oid))]
    except ValueError:
        values = []
    harmless = ["".join(filter(str.isprintable, value))[:_MOST_NAME_CHARACTERS] for value in values]
    return " / ".join(filter(None, dict.fromkeys(harmless))) or "an authority without a name"
