"""`multimix-site check` on the network, against real TLS servers on 127.0.0.1: who answers, and who only pretends to."""

import ipaddress
import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.preflight.network import reachability
from multimix.errors import InputError

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
QUICK_S = 0.8


# Certificates


class Authority:
    """A certificate authority that signs whatever it is asked to."""

    def __init__(self, organisation: str, name: str = "Root"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        attributes = ((NameOID.ORGANIZATION_NAME, organisation), (NameOID.COMMON_NAME, name))
        self.name = x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes])
        certificate = self._builder(self.name, self.key, NOW - 400 * DAY, NOW + 400 * DAY).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.pem = certificate.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _builder(self, subject, key, start, end):
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)

    def server(self, folder, *, host="127.0.0.1", start=NOW - DAY, end=NOW + 90 * DAY):
        """Return a context that shows a new certificate for `host`, and the certificate's SHA-256."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([]), key, start, end)
        name = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        certificate = builder.add_extension(x509.SubjectAlternativeName([name]), critical=True).sign(
            self.key, hashes.SHA256()
        )
        file = folder / "server.pem"
        private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(serialization.Encoding.PEM, *private)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context, certificate.fingerprint(hashes.SHA256()).hex(":").upper()


KIT = Authority("Coordinator of the federation")
HOSPITAL = Authority("St. Elsewhere Hospital", "Web Gateway CA")


# Servers


@contextmanager
def listening(answer):
    """Serve each connection by `answer(connection)` in a thread; give the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        done = threading.Event()

        def serve():
            while not done.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(5)
                threading.Thread(target=guarded, args=(connection,), daemon=True).start()

        def guarded(connection):
            with connection:
                try:
                    answer(connection)
                except OSError:  # the client went away, or did not trust us
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


def talking_tls(context, reply=b""):
    def answer(connection):
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(4096)
            secure.sendall(reply)

    return answer


def http(date: datetime) -> bytes:
    return f"HTTP/1.1 404 Not Found\r\nDate: {format_datetime(date, usegmt=True)}\r\n\r\n".encode()


def silent(connection):
    while connection.recv(4096):
        pass


def check(address, ca=KIT.pem, environment=None, **options):
    return reachability(address, ca=ca, environment=environment or {}, **({"timeout_s": 3} | options))


def summary(lines) -> list[tuple[str, str]]:
    return [(line.name, line.status) for line in lines]


REACHED = [("name", "PASS"), ("connection", "PASS")]


# Who answers


def test_the_server_of_the_kit_passes_and_its_certificate_is_named_by_fingerprint(tmp_path):
    context, fingerprint = KIT.server(tmp_path)
    with listening(talking_tls(context)) as address:
        lines = check(address)
    assert summary(lines) == [*REACHED, ("tls", "PASS")]
    assert fingerprint in lines[-1].finding


def test_a_server_known_by_name_is_checked_by_name(tmp_path):
    with listening(talking_tls(KIT.server(tmp_path, host="localhost")[0])) as address:
        lines = check(address.replace("127.0.0.1", "localhost"))
    assert summary(lines) == [*REACHED, ("tls", "PASS")]


def test_a_proxy_that_signs_anew_is_named_with_its_fingerprint(tmp_path):
    context, fingerprint = HOSPITAL.server(tmp_path)
    with listening(talking_tls(context)) as address:
        lines = check(address)
    assert summary(lines) == [*REACHED, ("tls", "FAIL")]
    assert "(tls_intercepted)" in lines[-1].finding
    assert "St. Elsewhere Hospital / Web Gateway CA" in lines[-1].finding
    assert fingerprint in lines[-1].finding


def test_a_proxy_that_takes_the_name_of_the_kits_authority_is_found_too(tmp_path):
    with listening(talking_tls(Authority("Coordinator of the federation").server(tmp_path)[0])) as address:
        assert "(tls_intercepted)" in check(address)[-1].finding


def test_a_proxy_that_this_machine_trusts_does_not_pass_for_the_kits_authority(tmp_path, monkeypatch):
    (tmp_path / "machine.pem").write_bytes(HOSPITAL.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "machine.pem"))
    with listening(talking_tls(HOSPITAL.server(tmp_path)[0])) as address:
        assert "(tls_intercepted)" in check(address)[-1].finding


def test_a_proxy_with_an_expired_certificate_is_still_told_to_be_a_proxy(tmp_path):
    context, _ = HOSPITAL.server(tmp_path, start=NOW - 20 * DAY, end=NOW - 10 * DAY)
    with listening(talking_tls(context)) as address:
        assert "(tls_intercepted)" in check(address)[-1].finding


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"start": NOW - 20 * DAY, "end": NOW - DAY}, "tls_expired"),
        ({"start": NOW + DAY, "end": NOW + 20 * DAY}, "tls_not_yet_valid"),
        ({"host": "another.example.org"}, "tls_wrong_host"),
        ({"host": "127.0.0.2"}, "tls_wrong_host"),
    ],
)
def test_what_is_wrong_with_a_certificate_of_the_kits_authority_is_told_apart(tmp_path, options, reason):
    with listening(talking_tls(KIT.server(tmp_path, **options)[0])) as address:
        lines = check(address)
    assert summary(lines) == [*REACHED, ("tls", "FAIL")]
    assert f"({reason})" in lines[-1].finding


def test_an_expired_certificate_is_told_with_its_date_and_the_clocks(tmp_path):
    end = NOW - DAY
    with listening(talking_tls(KIT.server(tmp_path, start=end - DAY, end=end)[0])) as address:
        line = check(address)[-1]
    assert f"The server's certificate was valid until {end:%Y-%m-%d %H:%M} UTC" in line.finding
    assert f"this machine's clock, which may be wrong, says {datetime.now(UTC):%Y-%m-%d}" in line.finding
    assert "multimix-server rotate`" in line.fix


def test_a_certificate_that_expires_within_two_weeks_warns(tmp_path):
    with listening(talking_tls(KIT.server(tmp_path, end=NOW + 3 * DAY)[0])) as address:
        lines = check(address)
    assert summary(lines) == [*REACHED, ("tls", "PASS"), ("tls", "WARN")]
    assert "3 day(s)" in lines[-1].finding


def test_without_the_kit_an_authority_of_this_machine_warns_that_interception_is_invisible(tmp_path, monkeypatch):
    (tmp_path / "machine.pem").write_bytes(HOSPITAL.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "machine.pem"))
    with listening(talking_tls(HOSPITAL.server(tmp_path)[0])) as address:
        lines = check(address, ca=None)
    assert summary(lines) == [*REACHED, ("tls", "WARN")]
    assert "cannot see it" in lines[-1].finding
    assert "St. Elsewhere Hospital" in lines[-1].finding


def test_without_the_kit_an_unknown_authority_fails(tmp_path):
    with listening(talking_tls(HOSPITAL.server(tmp_path)[0])) as address:
        lines = check(address, ca=None)
    assert summary(lines) == [*REACHED, ("tls", "FAIL")]
    assert "(tls_untrusted)" in lines[-1].finding


def test_an_authoritys_name_cannot_move_the_cursor_or_flood_the_screen(tmp_path):
    sly = Authority("\x1b[2J" + "x" * 60, "a\nPASS all is well")
    with listening(talking_tls(sly.server(tmp_path)[0])) as address:
        finding = check(address)[-1].finding
    assert finding.isprintable()
    assert "x" * 60 in finding
    assert "x" * 61 not in finding


# Who does not speak TLS


@pytest.mark.parametrize(
    "greeting",
    [b"220 ready\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes.fromhex("000006040000000000000500004000")],
    ids=["banner", "http", "gRPC without TLS"],
)
def test_a_server_without_tls_fails(greeting):
    def plain(connection):
        connection.recv(4096)
        connection.sendall(greeting)
        silent(connection)

    with listening(plain) as address:
        lines = check(address)
    assert summary(lines) == [*REACHED, ("tls", "FAIL")]
    assert "(tls_absent)" in lines[-1].finding


def test_a_server_that_says_nothing_ends_in_a_timeout():
    with listening(silent) as address:
        lines = check(address, timeout_s=QUICK_S)
    assert summary(lines) == [*REACHED, ("tls", "FAIL")]
    assert "nothing for 0.8 s (tls_timeout)" in lines[-1].finding


def test_a_firewall_that_closes_the_connection_is_told_apart_from_silence():
    with listening(lambda connection: connection.recv(4096)) as address:
        assert "(tls_closed)" in check(address)[-1].finding


def test_a_closed_port_fails():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    lines = check(address)
    assert summary(lines) == [("name", "PASS"), ("connection", "FAIL")]
    assert "(connection_refused)" in lines[-1].finding


def test_a_name_that_does_not_resolve_fails_and_is_not_shown():
    lines = check("nowhere.invalid:443")  # RFC 2606: never resolves
    assert summary(lines) == [("name", "FAIL")]
    assert "(name_unresolved)" in lines[0].finding
    assert "nowhere" not in repr(lines)


# The clock


@pytest.mark.parametrize(
    ("off", "status"),
    [(timedelta(0), "PASS"), (timedelta(seconds=90), "WARN"), (timedelta(seconds=-9), "FAIL")],
)
def test_the_clock_is_compared_with_a_server_that_speaks_http(tmp_path, off, status):
    with listening(talking_tls(KIT.server(tmp_path)[0], http(datetime.now(UTC) + off))) as address:
        lines = check(address)
    assert summary(lines) == [*REACHED, ("tls", "PASS"), ("clock", status)]


@pytest.mark.parametrize(
    "reply", [b"\0\0\6\4\0\0\0\0\0", b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n", b"HTTP/1.1 200 OK"]
)
def test_a_server_that_does_not_speak_http_makes_no_line_on_the_clock(tmp_path, reply):
    with listening(talking_tls(KIT.server(tmp_path)[0], reply)) as address:
        assert summary(check(address)) == [*REACHED, ("tls", "PASS")]


def test_a_server_that_never_answers_http_takes_no_longer_than_the_timeout(tmp_path):
    context, _ = KIT.server(tmp_path)

    def answer(connection):
        with context.wrap_socket(connection, server_side=True) as secure:
            silent(secure)

    with listening(answer) as address:
        started = datetime.now(UTC)
        lines = check(address, timeout_s=QUICK_S)
    assert summary(lines) == [*REACHED, ("tls", "PASS")]
    assert (datetime.now(UTC) - started).total_seconds() < 10 * QUICK_S


# Proxies


def connecting_proxy(asked: list[str], refuse: bytes = b""):
    """A CONNECT proxy that records what it is asked for."""

    def answer(connection):
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        asked.append(head.decode())
        if refuse:
            connection.sendall(refuse)
            return
        host, port = head.split()[1].decode().rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5) as onward:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(onward, connection), daemon=True)
            back.start()
            pump(connection, onward)
            back.join()

    return answer


def pump(source, target):
    try:
        while data := source.recv(4096):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_the_proxy_of_the_environment_is_used_and_reported_without_its_password(tmp_path):
    asked: list[str] = []
    with listening(talking_tls(KIT.server(tmp_path)[0])) as server, listening(connecting_proxy(asked)) as proxy:
        lines = check(server, environment={"HTTPS_PROXY": f"http://engineer:s3cret@{proxy}"})
    assert summary(lines) == [("proxy", "WARN"), *REACHED, ("tls", "PASS")]
    assert "HTTPS_PROXY" in lines[0].finding
    assert asked[0].startswith(f"CONNECT {server} HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic ZW5naW5lZXI6czNjcmV0\r\n" in asked[0]
    assert not [word for word in ("s3cret", "engineer", proxy, server) if word in repr(lines)]


def test_a_proxy_that_refuses_fails_with_its_status():
    refusal = b"HTTP/1.1 407 Proxy Authentication Required: ask Dr. Who\r\n\r\n"
    with listening(connecting_proxy([], refusal)) as proxy:
        lines = check("federation.example.org:443", environment={"https_proxy": proxy})
    assert summary(lines) == [("proxy", "WARN"), ("name", "PASS"), ("connection", "FAIL")]
    assert "HTTP status 407 (proxy_refused)" in lines[-1].finding
    assert "Who" not in repr(lines)


@pytest.mark.parametrize("answer", [silent, lambda connection: connection.sendall(b"\xff\xfe \xb2\xb2\xb2 \r\n\r\n")])
def test_a_proxy_that_does_not_speak_http_fails(answer):
    with listening(answer) as proxy:
        lines = check("federation.example.org:443", environment={"https_proxy": proxy}, timeout_s=QUICK_S)
    assert "no HTTP answer (proxy_refused)" in lines[-1].finding


@pytest.mark.parametrize("exempt", ["127.0.0.1", "example.org, 127.0.0.1", "*"])
def test_no_proxy_exempts_the_server(tmp_path, exempt):
    environment = {"https_proxy": "http://nowhere.invalid:1", "no_proxy": exempt}
    with listening(talking_tls(KIT.server(tmp_path)[0])) as server:
        lines = check(server, environment=environment)
    assert summary(lines) == [("proxy", "WARN"), *REACHED, ("tls", "PASS")]


def test_no_proxy_for_a_domain_does_not_exempt_a_name_that_only_ends_like_it():
    environment = {"https_proxy": "socks5://x", "no_proxy": ".example.org"}
    assert summary(check("notexample.org:443", environment=environment)) == [("proxy", "WARN"), ("proxy", "FAIL")]


@pytest.mark.parametrize("value", ["socks5://proxy:1080", "http://proxy:port", "http://", "http://proxy:0"])
def test_a_proxy_that_cannot_be_used_fails(value):
    lines = check("127.0.0.1:1", environment={"https_proxy": value})
    assert summary(lines) == [("proxy", "WARN"), ("proxy", "FAIL")]
    assert "(proxy_unusable)" in lines[-1].finding


# Input


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":443", "host:0", "host:70000", "host:https", "https://host:443", "u@host:1", "a:1/x"],
)
def test_an_address_that_is_not_host_and_port_is_refused(address):
    with pytest.raises(InputError) as caught:
        check(address)
    assert caught.value.reason == "bad_address"


@pytest.mark.parametrize("ca", [b"", b"not PEM", b"\xff\xfe"])
def test_a_kit_without_an_authority_is_refused_and_not_taken_for_no_kit(ca):
    with pytest.raises(InputError) as caught:
        check("127.0.0.1:1", ca=ca)
    assert caught.value.reason == "bad_authority"
