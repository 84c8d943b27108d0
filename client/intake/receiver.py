"""A C-STORE receiver: a PACS, modality or router pushes radiographs here, and they wait in a spool folder as files.

DICOM PS3.4, annex B (Storage), with pynetdicom. Nothing is decoded in this process: what arrives is written as it
came, behind a file header, and a decoder with limits of its own reads it later.

**AE titles are not authentication.** Called and calling titles are checked, which stops mistakes, not attackers: anyone
who reaches the port can claim a listed title. The bind address (loopback unless set) and the hospital's firewall decide
who may connect. There is no TLS here; a TLS tunnel in front of a loopback bind adds it.

A success status is sent only after the file is on disk under its final name, so a sender never believes in what a
power cut took away.
"""

import errno
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import (  # made at import time
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    Verification,
)

from client.intake.quiet import no_warnings_nor_tracebacks, silence
from multimix.config import Frozen
from multimix.data.dicom_pixels import decodable
from multimix.errors import SiteError
from multimix.files import write_atomically

STORAGE_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,  # taken so that the sender's job succeeds; set aside with a reason later
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
TRANSFER_SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless,
    JPEG2000Lossless, JPEG2000, RLELossless,
]  # fmt: skip

_STORED, _OUT_OF_RESOURCES, _CANNOT_PROCESS = 0x0000, 0xA700, 0xC211  # PS3.4, table B.2-1
_TICK_S = 0.25
_PATIENCE_S = 60.0  # files wait no longer than this, however steadily others arrive
_LAST_WRITES_S = 60.0
_SPEAK_UP_S = 10  # for a connection to ask for an association
_COMMAND, _LAST_FRAGMENT = 0b01, 0b10  # PS3.8, annex E.2: message control header
_FULL = (errno.ENOSPC, errno.EDQUOT)

AETitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
Outcome = Literal["stored", "disk_short", "too_large", "failed", "rejected"]


class ReceiverError(SiteError):
    """The receiver cannot run: `receiver_port` or `receiver_spool`."""


class Receiver(Frozen):
    """Who may send what to which door."""

    ae_title: AETitle = "MULTIMIX"
    bind: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 11112
    allowed_calling_ae: Annotated[tuple[AETitle, ...], Field(min_length=1)]
    maximum_file_bytes: Annotated[int, Field(ge=1)] = 512 << 20
    minimum_free_bytes: Annotated[int, Field(ge=0)] = 2 << 30  # left on the spool's disk after a file
    maximum_associations: Annotated[int, Field(ge=1, le=100)] = 4


@dataclass(frozen=True)
class Received:
    """How many objects met which end; `rejected` counts associations."""

    stored: int = 0
    disk_short: int = 0
    too_large: int = 0
    failed: int = 0
    rejected: int = 0


def spool_files(spool: Path) -> tuple[Path, ...]:
    """Return the complete files that wait, in the order of their (random) names."""
    return tuple(sorted(path for path in spool.glob("[!.]*.dcm") if path.is_file()))


def receive(
    settings: Receiver,
    spool: Path,
    *,
    on_quiet: Callable[[], None],
    quiet_s: float,
    stop: threading.Event,
) -> Received:
    """Receive into `spool` until `stop` is set, and say how it went.

    `on_quiet` runs in the calling thread, while receiving goes on, whenever files wait and nothing arrived for
    `quiet_s`, or files have waited for a minute; and once more at the end. It removes the files it has dealt with;
    files of an interrupted run, and those it leaves, are offered to it again.

    Raises:
        ReceiverError: The port is taken or the address is not ours; the spool is not ours or not writable.
    """
    silence("pynetdicom", "pydicom")
    _prepare(spool)
    desk = _Desk(settings, spool)
    with no_warnings_nor_tracebacks():
        entity = _entity(settings)
        _listen(entity, settings, desk)
        taken_at = time.monotonic()
        try:
            while not stop.wait(min(_TICK_S, quiet_s)):
                overdue = time.monotonic() - taken_at >= _PATIENCE_S
                if (overdue or desk.quiet_for_s() >= quiet_s) and spool_files(spool):
                    on_quiet()
                    desk.touch()
                    taken_at = time.monotonic()
        finally:
            _close(entity, desk)
        if spool_files(spool):
            on_quiet()
    return desk.received


class _Desk:
    """Takes what the associations' threads bring: one file at a time to disk, one line in the tally."""

    def __init__(self, settings: Receiver, spool: Path) -> None:
        self.received = Received()
        self._settings, self._spool = settings, spool
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._incoming: dict[int, int] = {}  # association -> bytes of the message under way
        self._cut_off: set[int] = set()
        self.writing = 0  # stores under way

    def quiet_for_s(self) -> float:
        return time.monotonic() - self._last

    def touch(self) -> None:
        self._last = time.monotonic()

    def store(self, event: evt.Event) -> int:
        """Answer one C-STORE request; no exception leaves, because its text would reach a log."""
        with self._lock:
            self.writing += 1
        try:
            outcome, status = self._keep(event)
        except OSError as error:
            full = error.errno in _FULL
            outcome, status = ("disk_short", _OUT_OF_RESOURCES) if full else ("failed", _CANNOT_PROCESS)
        except Exception:  # noqa: BLE001  (said above)
            outcome, status = "failed", _CANNOT_PROCESS
        self.count(outcome)
        self.touch()
        with self._lock:
            self.writing -= 1
        return status

    def _keep(self, event: evt.Event) -> tuple[Outcome, int]:
        data = event.encoded_dataset()  # preamble, file meta with this object's own UIDs only, dataset as sent
        if len(data) > self._settings.maximum_file_bytes:
            return "too_large", _OUT_OF_RESOURCES
        if shutil.disk_usage(self._spool).free - len(data) < self._settings.minimum_free_bytes:
            return "disk_short", _OUT_OF_RESOURCES
        write_atomically(self._spool / f"{secrets.token_hex(16)}.dcm", data)
        return "stored", _STORED

    def watch(self, event: evt.Event) -> None:
        """Cut off a sender whose object is far too large to hold in memory until it can be refused politely."""
        key = id(event.assoc)
        if not isinstance(event.pdu, P_DATA_TF) or key in self._cut_off:
            return
        for item in event.pdu.presentation_data_value_items:
            fragment = item.data or bytes([_COMMAND])
            if fragment[0] & _COMMAND:
                continue
            size = self._incoming.pop(key, 0) + len(fragment)
            if size > 2 * self._settings.maximum_file_bytes:
                self._cut_off.add(key)
                self.count("too_large")
                event.assoc.abort()
                return
            if not fragment[0] & _LAST_FRAGMENT:
                self._incoming[key] = size

    def forget(self, event: evt.Event) -> None:
        self._incoming.pop(id(event.assoc), None)
        self._cut_off.discard(id(event.assoc))

    def reject(self, _: evt.Event) -> None:
        self.count("rejected")

    def count(self, outcome: Outcome) -> None:
        with self._lock:
            self.received = replace(self.received, **{outcome: getattr(self.received, outcome) + 1})


def _prepare(spool: Path) -> None:
    """Make the spool private and clear halves of files that an interrupted run left."""
    try:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool.chmod(0o700)
        for half in spool.glob(".*.dcm.*"):
            half.unlink()
    except OSError:
        usable = False
    else:
        usable = True
    if not usable:
        raise ReceiverError("receiver_spool", "the spool folder cannot be made, owned or written by this user")


def _entity(settings: Receiver) -> AE:
    entity = AE(ae_title=settings.ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.allowed_calling_ae)
    entity.maximum_associations = settings.maximum_associations
    entity.acse_timeout = _SPEAK_UP_S
    entity.maximum_pdu_size = 1 << 17
    entity.add_supported_context(Verification)
    able = [syntax for syntax in TRANSFER_SYNTAXES if decodable(syntax)]
    for storage_class in STORAGE_CLASSES:
        entity.add_supported_context(storage_class, able)  # a PACS transcodes what is not offered
    return entity


def _listen(entity: AE, settings: Receiver, desk: _Desk) -> None:
    handlers: list[Any] = [
        (evt.EVT_C_STORE, desk.store),
        (evt.EVT_PDU_RECV, desk.watch),
        (evt.EVT_CONN_CLOSE, desk.forget),
        (evt.EVT_REJECTED, desk.reject),
    ]
    try:
        server = entity.start_server((settings.bind, settings.port), block=False, evt_handlers=handlers)
    except OSError:
        server = None
    if server is None:
        raise ReceiverError("receiver_port", "the port is taken, or the bind address is not one of this machine")
    server.handle_error = lambda *_: None  # prints the peer's address and a traceback


def _close(entity: AE, desk: _Desk) -> None:
    """Stop listening, cut what is under way (its sender will try again), and wait for files being written."""
    entity.shutdown()
    deadline = time.monotonic() + _LAST_WRITES_S
    while desk.writing and time.monotonic() < deadline:
        time.sleep(_TICK_S / 10)
