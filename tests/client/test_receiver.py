"""The C-STORE receiver, with Orthanc and with pynetdicom as the sender."""

import io
import logging
import re
import shutil
import socket
import threading
import time
import urllib.error
from contextlib import contextmanager

import pydicom
import pytest
from pydantic import ValidationError
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from client.intake.receiver import (
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    Receiver,
    ReceiverError,
    receive,
    spool_files,
)
from tests.orthanc import free_port, running_orthanc, small_dicom

SENTINELS = ("SENTINEL^PATIENT", "1.2.826.0.1.3680043.8.498.13371337", "SENTINELID")
SENDER = "SENDER"


class Running:
    """A receiver in a thread of its own; `quiet` notes what each on_quiet call saw and in which thread."""

    def __init__(self, spool, on_quiet=None, quiet_s=60.0, **settings):
        free = {"minimum_free_bytes": 0, "allowed_calling_ae": (SENDER, "TESTPACS"), "port": free_port()}
        self.settings = Receiver(**{**free, **settings})
        self.spool, self.on_quiet, self.quiet_s = spool, on_quiet or (lambda: None), quiet_s
        self.stop, self.quiet, self.received = threading.Event(), [], None
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        self.received = receive(self.settings, self.spool, on_quiet=self._note, quiet_s=self.quiet_s, stop=self.stop)

    def _note(self):
        self.quiet.append((len(spool_files(self.spool)), threading.current_thread()))
        self.on_quiet()

    def __enter__(self):
        self.thread.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.settings.port)) == 0:
                    return self
            time.sleep(0.02)
        raise RuntimeError("the receiver does not listen")

    def __exit__(self, *args):
        self.stop.set()
        self.thread.join(timeout=30)


def clear(spool):
    for path in spool_files(spool):
        path.unlink()


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("it did not happen in 10 s")
        time.sleep(0.02)


@contextmanager
def association(running, *, calling=SENDER, called="MULTIMIX", classes=(ComputedRadiographyImageStorage,)):
    entity = AE(ae_title=calling)
    for storage_class in classes:
        entity.add_requested_context(storage_class, [ExplicitVRLittleEndian])
    sender = entity.associate("127.0.0.1", running.settings.port, ae_title=called)
    try:
        yield sender
    finally:
        if sender.is_established:
            sender.release()


def radiograph(seed=1, **tags):
    return pydicom.dcmread(io.BytesIO(small_dicom(ComputedRadiographyImageStorage, "CR", seed=seed, **tags)))


def dataset_bytes(file):
    """What follows the file meta information (its group length is at byte 140)."""
    return file[144 + int.from_bytes(file[140:144], "little") :]


# ---------------------------------------------------------------- Orthanc sends


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.mark.orthanc
@pytest.mark.parametrize("jpeg2000", [False, True])
def test_what_a_pacs_sends_waits_as_a_file_with_the_very_same_dataset_bytes(orthanc, tmp_path, jpeg2000):
    sent = small_dicom(DigitalXRayImageStorageForPresentation, "DX", seed=3 + jpeg2000, jpeg2000=jpeg2000)
    with Running(tmp_path / "spool") as running:
        orthanc.store([orthanc.upload(sent)], called="MULTIMIX", port=running.settings.port)
        (path,) = spool_files(running.spool)
        kept = path.read_bytes()
    assert dataset_bytes(kept) == dataset_bytes(sent)
    syntax = pydicom.dcmread(io.BytesIO(kept)).file_meta.TransferSyntaxUID
    assert syntax == (JPEG2000Lossless if jpeg2000 else ExplicitVRLittleEndian)
    assert running.received.stored == 1


@pytest.mark.orthanc
@pytest.mark.parametrize("titles", [{"calling": "STRANGER"}, {"called": "ELSEWHERE"}])
def test_a_pacs_under_an_unlisted_or_to_a_wrong_title_is_rejected(orthanc, tmp_path, titles):
    sent = orthanc.upload(small_dicom(DigitalXRayImageStorageForPresentation, "DX", seed=9))
    with Running(tmp_path / "spool") as running:
        with pytest.raises(urllib.error.HTTPError):
            orthanc.store([sent], **{"called": "MULTIMIX", **titles}, port=running.settings.port)
        assert spool_files(running.spool) == ()
    assert running.received.rejected == 1


# ---------------------------------------------------------------- who and what is let in


@pytest.mark.parametrize("titles", [{"calling": "STRANGER"}, {"called": "ELSEWHERE"}])
def test_an_association_under_another_title_is_rejected(tmp_path, titles):
    with Running(tmp_path / "spool") as running, association(running, **titles) as sender:
        assert sender.is_rejected
    assert running.received.rejected == 1


def test_other_storage_classes_are_refused_and_the_listed_ones_accepted(tmp_path):
    classes = (*STORAGE_CLASSES, CTImageStorage)
    with Running(tmp_path / "spool") as running, association(running, classes=classes) as sender:
        accepted = {context.abstract_syntax for context in sender.accepted_contexts}
    assert accepted == set(STORAGE_CLASSES)


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_every_encoding_that_can_be_decoded_is_accepted(receiver, syntax):
    entity = AE(ae_title=SENDER)
    entity.add_requested_context(ComputedRadiographyImageStorage, [syntax])
    sender = entity.associate("127.0.0.1", receiver.settings.port, ae_title="MULTIMIX")
    assert [context.transfer_syntax for context in sender.accepted_contexts] == [[syntax]]
    sender.release()


def test_an_echo_is_answered(receiver):
    with association(receiver, classes=(Verification,)) as sender:
        assert sender.send_c_echo().Status == 0x0000


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    with Running(tmp_path_factory.mktemp("receiver") / "spool") as running:
        yield running


@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed_calling_ae": ()},
        {"allowed_calling_ae": (" ",)},
        {"ae_title": "SEVENTEEN_LETTERS"},
        {"ae_title": "A\\B"},
    ],
)
def test_an_empty_allow_list_and_impossible_titles_are_refused(wrong):
    with pytest.raises(ValidationError):
        Receiver(**{"allowed_calling_ae": (SENDER,), **wrong})


def test_a_taken_port_is_an_error_that_does_not_name_it(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Receiver(allowed_calling_ae=(SENDER,), port=taken.getsockname()[1])
        with pytest.raises(ReceiverError) as caught:
            receive(settings, tmp_path, on_quiet=lambda: None, quiet_s=1, stop=threading.Event())
    assert caught.value.reason == "receiver_port"
    assert str(settings.port) not in str(caught.value)


def test_a_spool_that_is_no_folder_is_an_error_that_does_not_name_it(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    settings = Receiver(allowed_calling_ae=(SENDER,), port=free_port())
    with pytest.raises(ReceiverError) as caught:
        receive(settings, tmp_path / "file", on_quiet=lambda: None, quiet_s=1, stop=threading.Event())
    assert caught.value.reason == "receiver_spool"
    assert str(tmp_path) not in str(caught.value)


# ---------------------------------------------------------------- what is written


def test_files_and_spool_are_private_and_names_random(tmp_path):
    with Running(tmp_path / "spool") as running, association(running) as sender:
        assert [sender.send_c_store(radiograph(seed)).Status for seed in (1, 1)] == [0x0000, 0x0000]
        files = spool_files(running.spool)
    assert running.spool.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert len(files) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}\.dcm", path.name) for path in files)


def test_the_file_header_holds_no_ae_title(tmp_path):
    with Running(tmp_path / "spool") as running, association(running) as sender:
        sender.send_c_store(radiograph())
        kept = spool_files(running.spool)[0].read_bytes()
    assert SENDER.encode() not in kept


def test_an_object_over_the_limit_is_refused_and_the_next_one_taken(tmp_path):
    large = radiograph(2)  # 8 KiB of pixels; the limit refuses 1.5 times as much
    large.ImageComments = "x" * 4000
    limit = len(small_dicom(ComputedRadiographyImageStorage, "CR", seed=1)) + 2000
    with Running(tmp_path / "spool", maximum_file_bytes=limit) as running, association(running) as sender:
        assert sender.send_c_store(large).Status == 0xA700
        assert sender.send_c_store(radiograph(1)).Status == 0x0000
    assert (running.received.too_large, running.received.stored) == (1, 1)


def test_an_object_far_over_the_limit_is_cut_off_before_it_is_whole(tmp_path):
    with Running(tmp_path / "spool", maximum_file_bytes=1000) as running:
        with association(running) as sender:
            huge = radiograph()
            huge.PixelData = bytes(8 << 20)
            assert "Status" not in sender.send_c_store(huge)
            until(lambda: sender.is_aborted)
        assert spool_files(running.spool) == ()
    assert running.received.too_large == 1


def test_a_full_disk_is_said_to_the_sender(tmp_path):
    with Running(tmp_path / "spool", minimum_free_bytes=1 << 62) as running, association(running) as sender:
        assert sender.send_c_store(radiograph()).Status == 0xA700
        assert spool_files(running.spool) == ()
    assert running.received.disk_short == 1


def test_a_write_that_fails_is_answered_with_a_bare_code(tmp_path):
    with Running(tmp_path / "spool") as running, association(running) as sender:
        shutil.rmtree(running.spool)
        running.spool.write_bytes(b"")  # the spool is now a file
        answer = sender.send_c_store(radiograph())
    assert answer.Status == 0xC211
    assert "ErrorComment" not in answer
    assert running.received.failed == 1


# ---------------------------------------------------------------- when files are handed on


def test_on_quiet_runs_once_in_the_callers_thread_after_the_pause(tmp_path):
    with Running(tmp_path / "spool", quiet_s=0.3) as running:
        running.on_quiet = lambda: clear(running.spool)
        with association(running) as sender:
            for seed in range(3):
                sender.send_c_store(radiograph(seed))
        until(lambda: running.quiet)
        time.sleep(0.8)  # nothing waits, so nothing more happens
    assert running.quiet == [(3, running.thread)]


def test_receiving_goes_on_while_on_quiet_runs(tmp_path):
    entered, leave = threading.Event(), threading.Event()

    def busy():
        entered.set()
        leave.wait(10)

    with Running(tmp_path / "spool", on_quiet=busy, quiet_s=0.1) as running, association(running) as sender:
        sender.send_c_store(radiograph(1))
        assert entered.wait(10)
        assert sender.send_c_store(radiograph(2)).Status == 0x0000
        assert len(spool_files(running.spool)) == 2
        leave.set()


def test_files_that_wait_at_the_end_are_handed_on(tmp_path):
    with Running(tmp_path / "spool", quiet_s=60) as running, association(running) as sender:
        sender.send_c_store(radiograph())
    assert [count for count, _ in running.quiet] == [1]


def test_nothing_waiting_means_no_call_at_the_end(tmp_path):
    with Running(tmp_path / "spool", quiet_s=0.05) as running:
        time.sleep(0.3)
    assert running.quiet == []


def test_an_interrupted_run_leaves_whole_files_to_the_next_and_halves_to_nobody(tmp_path):
    (tmp_path / "whole.dcm").write_bytes(b"whole")
    (tmp_path / ".half.dcm.x7f").write_bytes(b"ha")
    with Running(tmp_path, quiet_s=0.1) as running:
        until(lambda: running.quiet)
        assert [path.name for path in tmp_path.iterdir()] == ["whole.dcm"]


# ---------------------------------------------------------------- silence


def test_no_log_record_nor_terminal_line_holds_an_identifier(tmp_path, caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    name, uid, patient = SENTINELS
    with Running(tmp_path / "spool", maximum_file_bytes=100_000) as running:
        for logger in ("pynetdicom", "pynetdicom.association", "pynetdicom.events", "pydicom"):
            logging.getLogger(logger).setLevel(logging.DEBUG)
        with association(running) as sender:
            sender.send_c_store(radiograph(PatientName=name, PatientID=patient, SOPInstanceUID=uid))
            sender.send_c_store(radiograph(PatientName=name, SOPInstanceUID=f"{uid}.not.a.uid"))
        with association(running, calling="SENTINELID") as sender:
            assert sender.is_rejected
        with socket.create_connection(("127.0.0.1", running.settings.port)) as garbage:
            garbage.sendall(b"\x01\x00\x00\x00\x00\x50SENTINELID" + bytes(70))
            garbage.shutdown(socket.SHUT_WR)
            garbage.recv(100)
    terminal = capfd.readouterr()
    told = [terminal.out, terminal.err, caplog.text, *(str(warning.message) for warning in recwarn)]
    assert [text for text in told if any(secret in text for secret in SENTINELS)] == []
    assert running.received.stored == 2
