"""The proxies of the scenarios do what they are there for."""

import http.server
import ipaddress
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.orthanc import free_port

_BODY = b"x" * 20_000


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(_BODY)))
        self.end_headers()
        self.wfile.write(_BODY)

    def log_message(self, *_arguments):
        pass


def certificate(folder, name, host="127.0.0.1"):
    """Write a self-signed certificate for an address and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    address = x509.IPAddress(ipaddress.ip_address(host))
    made = (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    unencrypted = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, unencrypted))
    return paths


@contextmanager
def serving(tls=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def proxy(kind, *arguments):
    listen = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tests.deployment.proxies", kind, listen, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    yield listen, process
    process.terminate()
    process.wait(timeout=5)
    process.stdout.close()


def test_an_https_proxy_passes_on_what_it_cannot_read(tmp_path):
    pair = certificate(tmp_path, "server")
    with serving(tls=pair) as server, proxy("connect") as (listen, process):
        context = ssl.create_default_context(cafile=str(pair[0]))
        answer = httpx.get(f"https://{server}/", proxy=f"http://{listen}", verify=context)
        assert answer.content == _BODY
        assert process.stdout.readline().strip() == f"CONNECT {server}"


def test_a_slow_link_takes_as_long_as_its_rate_says():
    with serving() as server, proxy("slow", server, 0.05, 40_000) as (listen, _):
        began = time.monotonic()
        assert httpx.get(f"http://{listen}/", timeout=30).content == _BODY
        assert time.monotonic() - began > len(_BODY) / 40_000


def test_an_intercepting_proxy_shows_another_certificate(tmp_path):
    pair, own = certificate(tmp_path, "server"), certificate(tmp_path, "office")
    with serving(tls=pair) as server, proxy("intercept", server, *own) as (listen, _):
        assert httpx.get(f"https://{listen}/", verify=ssl.create_default_context(cafile=str(own[0]))).content == _BODY
        with pytest.raises(httpx.ConnectError, match="self-signed|verify failed"):
            httpx.get(f"https://{listen}/", verify=ssl.create_default_context(cafile=str(pair[0])))
