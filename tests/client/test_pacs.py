"""The DICOMweb client against a real Orthanc, and against a hand-written server that misbehaves."""

import io
import json
import logging
import ssl
import threading
import time
import traceback
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    SegmentationStorage,
)

from client.intake.dicomweb import PacsError, single_part
from client.intake.pacs import Instance, Pacs, PacsClient
from tests.orthanc import free_port, running_orthanc, small_dicom

SENTINEL_UID = "1.2.826.0.1.3680043.8.498.13371337"
SENTINEL_NAME = "SENTINEL^PATIENT"
ANY = Instance("1.2.3", "1.2.3.4", SENTINEL_UID, "CR")
BOUNDARY = 'multipart/related; type="application/dicom"; boundary=xyz'


def secret_file(path, text):
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


# ---------------------------------------------------------------- a real PACS


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Orthanc with CR and DX of three studies, one of them with a CT and a SEG series too; also a CT study."""
    cr, dx = ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation
    mixed = "1.2.3.4.5"
    files = {
        "cr": small_dicom(cr, "CR", seed=1, PatientName=SENTINEL_NAME, SOPInstanceUID=SENTINEL_UID),
        "cr, mixed study": small_dicom(cr, "CR", seed=2, study=mixed, PatientID="m"),
        "dx, mixed study": small_dicom(dx, "DX", seed=3, study=mixed, PatientID="m"),
        "dx, jpeg 2000": small_dicom(dx, "DX", seed=4, jpeg2000=True, StudyDate="20210601"),
        "ct, mixed study": small_dicom(CTImageStorage, "CT", seed=5, study=mixed, PatientID="m"),
        "seg, mixed study": small_dicom(SegmentationStorage, "SEG", seed=6, study=mixed, PatientID="m"),
        "ct": small_dicom(CTImageStorage, "CT", seed=7),
    }
    folder = tmp_path_factory.mktemp("orthanc")
    with running_orthanc(folder) as orthanc:
        for data in files.values():
            orthanc.upload(data)
        password = secret_file(folder / "password", orthanc.password)
        yield orthanc, files, {"url": orthanc.dicomweb, "username": orthanc.username, "password_file": password}


def uid_of(data):
    return pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID


def names_found(files, settings):
    names = {uid_of(data): name for name, data in files.items()}
    with PacsClient(settings) as pacs:
        return sorted(names[instance.instance_uid] for instance in pacs.search())


@pytest.mark.orthanc
@pytest.mark.parametrize("page_size", [1, 2, 200])
def test_every_cr_and_dx_is_found_once_whatever_the_page_size(archive, page_size):
    _, files, login = archive
    found = names_found(files, Pacs(**login, page_size=page_size))
    assert found == ["cr", "cr, mixed study", "dx, jpeg 2000", "dx, mixed study"]


@pytest.mark.orthanc
def test_study_dates_bound_the_search_on_both_sides(archive):
    _, files, login = archive
    assert names_found(files, Pacs(**login, since=date(2021, 6, 1))) == ["dx, jpeg 2000"]
    assert "dx, jpeg 2000" not in names_found(files, Pacs(**login, until=date(2021, 5, 31)))


@pytest.mark.orthanc
def test_segmentations_of_the_studies_found_come_along_when_asked_for(archive):
    _, files, login = archive
    found = names_found(files, Pacs(**login, segmentations=True))
    assert found == ["cr", "cr, mixed study", "dx, jpeg 2000", "dx, mixed study", "seg, mixed study"]


@pytest.mark.orthanc
@pytest.mark.parametrize(("name", "syntax"), [("cr", ExplicitVRLittleEndian), ("dx, jpeg 2000", JPEG2000Lossless)])
def test_an_instance_arrives_in_its_original_encoding_with_equal_pixels(archive, name, syntax):
    _, files, login = archive
    original = pydicom.dcmread(io.BytesIO(files[name]))
    with PacsClient(Pacs(**login)) as pacs:
        wanted = next(instance for instance in pacs.search() if instance.instance_uid == original.SOPInstanceUID)
        fetched = pydicom.dcmread(io.BytesIO(pacs.retrieve(wanted)))
    assert fetched.file_meta.TransferSyntaxUID == syntax
    assert (fetched.pixel_array == original.pixel_array).all()


@pytest.mark.orthanc
def test_a_wrong_password_is_denied(archive, tmp_path):
    _, _, login = archive
    settings = Pacs(**{**login, "password_file": secret_file(tmp_path / "wrong", "not the password")})
    with PacsClient(settings) as pacs, pytest.raises(PacsError) as caught:
        list(pacs.search())
    assert caught.value.reason == "pacs_denied"


@pytest.mark.orthanc
def test_no_log_record_at_any_level_holds_an_identifier_or_an_address(archive, caplog):
    _, _, login = archive
    caplog.set_level(logging.DEBUG)
    with PacsClient(Pacs(**login)) as pacs:
        for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection"):
            logging.getLogger(name).setLevel(logging.DEBUG)  # as an eager logging configuration would
        found = list(pacs.search())
        for instance in found:
            pacs.retrieve(instance)
    logged = caplog.text + "".join(repr(record.args) for record in caplog.records)
    for secret in (SENTINEL_NAME, SENTINEL_UID, "127.0.0.1", *(instance.study_uid for instance in found)):
        assert secret not in logged


# ---------------------------------------------------------------- a server that misbehaves


@contextmanager
def serving(answer, *, tls=None):
    """Serve `answer(path, query, headers, number) -> (status, headers, chunks)`; yields (url, requests)."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            requests.append((parts.path, query, dict(self.headers)))
            status, headers, chunks = answer(parts.path, query, dict(self.headers), len(requests))
            try:
                if status is None:
                    return  # hang up without a word
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for chunk in chunks:
                    self.wfile.write(chunk)
                    self.wfile.flush()
            except OSError:
                pass  # the client had enough

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args):
            pass  # a refused TLS handshake

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/dicom-web", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def page(uids, key="0020000D"):
    return json.dumps([{key: {"vr": "UI", "Value": [uid]}} for uid in uids]).encode()


def multipart(*parts, closing=b"--"):
    body = b"".join(b"--xyz\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts)
    return body + b"--xyz" + closing + b"\r\n"


def client(url, waits=None, **settings):
    sleep = (lambda _: None) if waits is None else waits.append
    return PacsClient(Pacs(url=url, modalities=("CR",), **settings), sleep=sleep)


def reason_of(action):
    """The reason of the PacsError; its whole traceback text must not name the server or the instance."""
    with pytest.raises(PacsError) as caught:
        action()
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SENTINEL_UID not in text
    assert "127.0.0.1" not in text
    assert caught.value.__context__ is None  # no library exception hangs on it
    return caught.value.reason


def studies_listed(server, *, page_size):
    """All study UIDs a client gets from `server(offset, limit) -> (uids, headers)`; each study has one image."""

    def answer(path, query, headers, number):
        if path.endswith("/studies"):
            uids, more = server(int(query["offset"]), int(query["limit"]))
            return 200, more, [page(uids)]
        study = path.split("/")[3]
        own = [] if query["offset"] != "0" else [f"{study}.1"]
        return 200, {}, [page(own, "0020000E" if path.endswith("/series") else "00080018")]

    with serving(answer) as (url, _), client(url, page_size=page_size) as pacs:
        return [instance.study_uid for instance in pacs.search()], pacs.skipped


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("page_size", [1, 2, 3])
@pytest.mark.parametrize("cuts_first", [False, True])
def test_all_pages_are_read_from_servers_that_skip_first_and_that_cut_first(count, page_size, cuts_first):
    every = [f"1.{index}" for index in range(1, count + 1)]

    def server(offset, limit):  # cutting first is what Orthanc 1.10 does
        return (every[:limit][offset:] if cuts_first else every[offset : offset + limit]), {}

    assert studies_listed(server, page_size=page_size) == (every, 0)


def test_a_server_that_sends_everything_at_once_is_read_once():
    every = [f"1.{index}" for index in range(1, 6)]
    assert studies_listed(lambda offset, limit: (every, {}), page_size=2) == (every, 0)


def test_a_short_page_with_the_warning_that_more_remains_is_not_the_last():
    every = [f"1.{index}" for index in range(1, 6)]

    def server(offset, limit):  # a server whose own limit is 2
        more = offset + 2 < len(every)
        return every[offset : offset + 2], {"Warning": '299 - "There are more results"'} if more else {}

    assert studies_listed(server, page_size=100) == (every, 0)


def test_a_server_that_repeats_a_page_is_refused():
    server = lambda offset, limit: (["1.1", "1.2"][:limit], {})  # noqa: E731
    assert reason_of(lambda: studies_listed(server, page_size=2)) == "pacs_paging"


def test_a_uid_that_is_none_enters_no_address_and_is_counted():
    server = lambda offset, limit: (["../../../admin", "", "1.2"] if offset == 0 else [], {})  # noqa: E731
    assert studies_listed(server, page_size=50) == (["1.2"], 2)


def test_an_instance_listed_under_two_modalities_comes_once():
    def answer(path, query, headers, number):
        key = "0020000D" if path.endswith("/studies") else "0020000E" if path.endswith("/series") else "00080018"
        return 200, {}, [page(["1.2"], key)]

    with serving(answer) as (url, _), PacsClient(Pacs(url=url)) as pacs:
        assert len(list(pacs.search())) == 1


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"a": 1}', b"<html>", b"[" * 100_000, b"\xff\xfe"])
def test_a_search_answer_that_is_no_list_of_objects_is_refused(body):
    with serving(lambda *_: (200, {}, [body])) as (url, _), client(url) as pacs:
        assert reason_of(lambda: list(pacs.search())) == "pacs_answer"


def test_no_content_means_no_match():
    with serving(lambda *_: (204, {}, [])) as (url, _), client(url) as pacs:
        assert list(pacs.search()) == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (BOUNDARY, multipart(b"DICOM", closing=b"")),
        (BOUNDARY, multipart(b"DICOM")[:-8]),
        (BOUNDARY, multipart(b"one", b"two")),
        (BOUNDARY, b""),
        ("multipart/related", multipart(b"DICOM")),
        ("text/html", b"<html>log in</html>"),
    ],
)
def test_an_instance_that_is_not_exactly_one_whole_part_is_refused(content_type, body):
    with serving(lambda *_: (200, {"Content-Type": content_type}, [body])) as (url, _), client(url) as pacs:
        assert reason_of(lambda: pacs.retrieve(ANY)) == "pacs_answer"


@pytest.mark.parametrize("status", [301, 500, 418])
def test_any_other_status_is_no_answer_and_no_redirect_is_followed(status):
    with serving(lambda *_: (status, {"Location": "/elsewhere"}, [])) as (url, requests), client(url) as pacs:
        assert reason_of(lambda: pacs.retrieve(ANY)) == "pacs_answer"
        assert len(requests) == 1


def test_an_instance_the_server_does_not_have_is_missing():
    with serving(lambda *_: (404, {}, [])) as (url, _), client(url) as pacs:
        assert reason_of(lambda: pacs.retrieve(ANY)) == "instance_missing"


def test_an_endless_instance_is_stopped_at_the_cap():
    sent = []

    def endless():
        for _ in range(10_000):  # 640 MB
            sent.append(1)
            yield bytes(1 << 16)

    answer = lambda *_: (200, {"Content-Type": BOUNDARY}, endless())  # noqa: E731
    with serving(answer) as (url, _), client(url, maximum_bytes=1000) as pacs:
        assert reason_of(lambda: pacs.retrieve(ANY)) == "instance_too_large"
    assert len(sent) < 1000


def test_an_instance_just_over_the_cap_is_too_large_and_at_the_cap_is_not():
    answer = lambda *_: (200, {"Content-Type": BOUNDARY}, [multipart(b"x" * 100)])  # noqa: E731
    with serving(answer) as (url, _):
        with client(url, maximum_bytes=99) as pacs:
            assert reason_of(lambda: pacs.retrieve(ANY)) == "instance_too_large"
        with client(url, maximum_bytes=100) as pacs:
            assert pacs.retrieve(ANY) == b"x" * 100


def test_a_silent_server_times_out_after_every_retry():
    def answer(*_):
        time.sleep(0.5)
        return 200, {}, []

    with serving(answer) as (url, requests), client(url, timeout_s=0.1, retries=1) as pacs:
        assert reason_of(lambda: list(pacs.search())) == "pacs_timeout"
        assert len(requests) == 2


def test_a_server_that_drips_is_cut_off():
    def drip():
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    with serving(lambda *_: (200, {}, drip())) as (url, _), client(url, answer_s=0.2) as pacs:
        started = time.monotonic()
        assert reason_of(lambda: list(pacs.search())) == "pacs_timeout"
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(("header", "wait_s"), [("3", 3.0), ("86400", 60.0), ("soon", 0.5)])
def test_a_busy_server_is_asked_again_after_the_wait_it_wants_within_a_bound(status, header, wait_s):
    def answer(path, query, headers, number):
        return (status, {"Retry-After": header}, []) if number == 1 else (200, {}, [b"[]"])

    waits = []
    with serving(answer) as (url, _), client(url, waits) as pacs:
        assert list(pacs.search()) == []
    assert waits == [wait_s]


def test_a_server_that_stays_busy_ends_in_that_reason():
    with serving(lambda *_: (503, {}, [])) as (url, requests), client(url, retries=2) as pacs:
        assert reason_of(lambda: list(pacs.search())) == "pacs_busy"
        assert len(requests) == 3


def test_a_dropped_connection_is_tried_again():
    def answer(path, query, headers, number):
        return (None, {}, []) if number == 1 else (200, {}, [b"[]"])

    with serving(answer) as (url, _), client(url) as pacs:
        assert list(pacs.search()) == []


def test_nobody_listening_is_unreachable_after_doubling_waits():
    waits = []
    with client(f"http://127.0.0.1:{free_port()}/dicom-web", waits, retries=3) as pacs:
        assert reason_of(lambda: pacs.retrieve(ANY)) == "pacs_unreachable"
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_server_that_refuses_the_original_encoding_is_asked_more_plainly(refusals):
    def answer(path, query, headers, number):
        if number <= refusals:
            return 406, {}, []
        plain = headers["Accept"] == "application/dicom"
        return (
            200,
            {"Content-Type": headers["Accept"] if plain else BOUNDARY},
            [b"DICOM" if plain else multipart(b"DICOM")],
        )

    with serving(answer) as (url, requests), client(url) as pacs:
        assert pacs.retrieve(ANY) == b"DICOM"
    accepted = [headers["Accept"] for _, _, headers in requests]
    assert "transfer-syntax=*" in accepted[0]
    assert "transfer-syntax" not in accepted[-1]


def test_a_compressed_answer_is_refused_because_the_cap_counts_plain_bytes():
    with serving(lambda *_: (200, {"Content-Encoding": "gzip"}, [b"x"])) as (url, _), client(url) as pacs:
        assert reason_of(lambda: list(pacs.search())) == "pacs_answer"


def test_a_token_file_is_sent_as_bearer(tmp_path):
    token = secret_file(tmp_path / "token", "abc")
    with serving(lambda *_: (204, {}, [])) as (url, requests), client(url, token_file=token) as pacs:
        list(pacs.search())
    assert requests[0][2]["Authorization"] == "Bearer abc"


@pytest.mark.parametrize(("mode", "text"), [(0o640, "abc"), (0o604, "abc"), (0o600, ""), (0o600, "a\nb")])
def test_a_secret_that_others_can_read_or_that_is_no_single_line_is_refused(tmp_path, mode, text):
    token = secret_file(tmp_path / "token", text)
    token.chmod(mode)
    assert reason_of(lambda: client("https://pacs/d", token_file=token)) == "pacs_secret"


def test_plain_http_leaves_the_machine_only_when_allowed():
    assert reason_of(lambda: client("http://pacs.hospital.example/d")) == "pacs_plain_http"
    client("http://pacs.hospital.example/d", allow_plain_http=True)
    client("https://pacs.hospital.example/d")


def test_credentials_in_the_address_are_refused_without_repeating_it():
    with pytest.raises(ValidationError) as caught:
        Pacs(url="https://somebody:hunter2@pacs/d")
    assert "hunter2" not in str(caught.value)


def test_reprs_show_neither_uids_nor_the_address():
    assert repr(ANY) == "Instance(modality='CR')"
    assert "pacs.hospital" not in repr(Pacs(url="https://pacs.hospital.example/d", username="u", password_file="p"))


def own_certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    import ipaddress

    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(encoded)
    (folder / "key.pem").chmod(0o600)
    return folder / "certificate.pem", folder / "key.pem"


def test_a_server_is_trusted_by_the_hospitals_authority_only(tmp_path):
    certificate, key = own_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serving(lambda *_: (204, {}, []), tls=tls) as (url, requests):
        with client(url) as pacs:
            assert reason_of(lambda: list(pacs.search())) == "pacs_tls"
        assert requests == []
        with client(url, ca_file=certificate) as pacs:
            assert list(pacs.search()) == []


def test_a_client_certificate_is_shown_to_the_server(tmp_path):
    certificate, key = own_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    tls.load_verify_locations(certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    with serving(lambda *_: (204, {}, []), tls=tls) as (url, _):
        with client(url, ca_file=certificate, client_certificate=certificate, client_key=key) as pacs:
            assert list(pacs.search()) == []
        with client(url, ca_file=certificate, retries=0) as pacs:
            assert reason_of(lambda: list(pacs.search())) in {"pacs_tls", "pacs_unreachable"}


def test_a_client_key_that_others_can_read_is_refused(tmp_path):
    certificate, key = own_certificate(tmp_path)
    key.chmod(0o644)
    certificates = {"client_certificate": certificate, "client_key": key}
    assert reason_of(lambda: client("https://pacs/d", **certificates)) == "pacs_secret"


@given(content=st.binary(max_size=200), preamble=st.sampled_from([b"", b"\r\n", b"a preamble\r\n"]))
def test_one_part_comes_out_of_a_multipart_body_as_it_went_in(content, preamble):
    if b"\r\n--xyz" not in b"\r\n" + content:
        assert single_part(preamble + multipart(content), BOUNDARY) == content


@given(body=st.binary(max_size=100), content_type=st.text(st.characters(max_codepoint=255), max_size=40))
def test_any_body_under_any_content_type_ends_in_bytes_or_a_reason(body, content_type):
    for kind in (content_type, f'multipart/related; boundary="{content_type}"', BOUNDARY):
        try:
            assert isinstance(single_part(body, kind), bytes)
        except PacsError as error:
            assert error.reason == "pacs_answer"
