"""Can this machine reach the server: name, port, proxy, TLS and the server's clock?

Nothing is sent but TLS handshakes and one `HEAD /`. Findings show neither address nor credentials.
"""

import base64
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from client.preflight.clock import clock_against
from client.preflight.lines import Line
from client.preflight.tls import Stopped, exchange, shake_hands, trust
from multimix.errors import SiteError

_ASK = "Ask the network team to allow outgoing connections from this machine to the server's name and port."


@dataclass(frozen=True)
class _Server:
    host: str
    port: int
    proxy: SplitResult | None
    timeout_s: float

    @property
    def first_hop(self) -> tuple[str, int]:
        if self.proxy is None:
            return self.host, self.port
        return self.proxy.hostname or "", self.proxy.port or 80

    @property
    def who(self) -> str:
        return "proxy" if self.proxy else "server"


def reachability(
    address: str, *, ca: bytes | None, timeout_s: float = 5, environment: Mapping[str, str] | None = None
) -> list[Line]:
    """Resolve, connect, shake hands and compare clocks; the first failure ends the list.

    The finding of each FAIL ends with a reason code in brackets, such as `(tls_intercepted)`.

    Args:
        address: "host:port".
        ca: PEM certificates of the only authorities that may sign the server, from the coordinator's kit. Without
            them the machine's own authorities decide, and an interception by one of those cannot be seen: WARN.
        timeout_s: Of each step, in seconds; the system's resolver has its own limit.
        environment: Where HTTPS_PROXY and NO_PROXY are looked up; that of the process unless given.

    Raises:
        SiteError: `bad_address` or `bad_authority`, before anything is sent.
    """
    host, port = _parse(address)
    context = trust(ca)
    lines: list[Line] = []
    try:
        proxy = _proxy(host, os.environ if environment is None else environment, lines)
        server = _Server(host, port, proxy, timeout_s)
        lines.append(_resolve(server))
        _connect(server).close()
        lines.append(Line("connection", "PASS", "The server's port accepts connections."))
        asked = time.time()
        seen, date = shake_hands(lambda: _connect(server), host, context, pinned=ca is not None, timeout_s=timeout_s)
    except Stopped as stopped:
        return [*lines, stopped.line]
    return [*lines, *seen, clock_against(date, now=asked)] if date else [*lines, *seen]


def _parse(address: str) -> tuple[str, int]:
    """Return the host, an international name in its ASCII form, and the port."""
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and parts.netloc == address and "@" not in address:
            return parts.hostname.encode("idna").decode("ascii"), parts.port
    except ValueError:
        pass
    raise SiteError("bad_address", "The server's address must be host:port, such as federation.example.org:9092.")


def _proxy(host: str, environment: Mapping[str, str], lines: list[Line]) -> SplitResult | None:
    """Return the proxy to go through, if any, and report that one is set; its value may hold a password."""
    names = [name for name in ("https_proxy", "HTTPS_PROXY") if environment.get(name)]
    if not names:
        return None
    exempt = _is_exempt(host, environment.get("no_proxy") or environment.get("NO_PROXY") or "")
    use = "NO_PROXY exempts the server from it" if exempt else "The server is tried through it"
    lines.append(
        Line(
            "proxy",
            "WARN",
            f"A proxy is set in {' and '.join(names)}. {use}.",
            "See that it is meant for the federation. Programs that read only one spelling of the name need both set.",
        )
    )
    return None if exempt else _parse_proxy(environment[names[0]])


def _is_exempt(host: str, no_proxy: str) -> bool:
    """Say whether a comma-separated list names the host, a domain it is in, or everything (*)."""
    names = [name.strip().lstrip(".").lower() for name in no_proxy.split(",") if name.strip()]
    return any(name == "*" or f".{host}".endswith(f".{name}") for name in names)


def _parse_proxy(value: str) -> SplitResult:
    try:
        proxy = urlsplit(value if "://" in value else f"http://{value}")
        if proxy.scheme == "http" and proxy.hostname and proxy.port != 0:
            return proxy
    except ValueError:
        pass
    raise Stopped(
        "proxy",
        "The proxy's address is not of the form http://host:port (proxy_unusable).",
        "Correct HTTPS_PROXY, or unset it for this user.",
    )


def _resolve(server: _Server) -> Line:
    try:
        found = socket.getaddrinfo(*server.first_hop, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Stopped(
            "name",
            f"This machine's DNS has no address for the {server.who}'s name (name_unresolved).",
            "See that the name is spelt as in the kit; then ask the network team to resolve it.",
        ) from None
    return Line("name", "PASS", f"The {server.who}'s name has {len({entry[4][0] for entry in found})} address(es).")


def _connect(server: _Server) -> socket.socket:
    """Return a connection to the server, through the proxy if there is one; `Stopped` otherwise."""
    try:
        connection = socket.create_connection(server.first_hop, timeout=server.timeout_s)
    except TimeoutError:
        finding = f"The {server.who} did not answer within {server.timeout_s:g} s (connect_timeout)."
        raise Stopped("connection", finding, f"A firewall may drop the connection. {_ASK}") from None
    except ConnectionRefusedError:
        finding = f"Nothing accepts connections on the {server.who}'s port (connection_refused)."
        fix = f"See that the port is that of the kit and that the {server.who} runs. {_ASK}"
        raise Stopped("connection", finding, fix) from None
    except OSError:
        finding = f"There is no way through the network to the {server.who} (unreachable)."
        raise Stopped("connection", finding, _ASK) from None
    if server.proxy is not None:
        _tunnel(connection, server, server.proxy)
    return connection


def _tunnel(connection: socket.socket, server: _Server, proxy: SplitResult) -> None:
    """Ask the proxy for a tunnel to the server (CONNECT, RFC 9110 section 9.3.6)."""
    target = f"[{server.host}]:{server.port}" if ":" in server.host else f"{server.host}:{server.port}"
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.username is not None:
        credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
        request += f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode('ascii')}\r\n"
    status = exchange(connection, f"{request}\r\n".encode("ascii"), server.timeout_s).split(b" ", 2)[1:2]
    if status and status[0][:3] in {b"200", b"204"}:
        return
    connection.close()
    said = f"HTTP status {int(status[0][:3])}" if status and status[0][:3].isdigit() else "no HTTP answer"
    raise Stopped(
        "connection",
        f"The proxy did not connect to the server: {said} (proxy_refused).",
        "Ask the network team to let the proxy through to the server; 407 means that it wants a user and a password.",
    )
