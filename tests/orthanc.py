"""A real PACS: Orthanc with its DICOMweb plugin, on loopback, in a folder of its own, stopped by its own process."""

import base64
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

_DEBIAN = Path("/usr/sbin/Orthanc")
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ORTHANC = (shutil.which("Orthanc") or (str(_DEBIAN) if _DEBIAN.exists() else None)) if _PLUGIN.exists() else None
_STARTUP_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def small_dicom(
    sop_class: str, modality: str, *, seed: int, jpeg2000: bool = False, study: str = "", **tags: str
) -> bytes:
    """A 64 x 64, 12-bit object of noise as a DICOM file, in explicit little endian or lossless JPEG 2000."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = sop_class, generate_uid(), generate_uid()
    dataset.StudyInstanceUID, dataset.Modality = study or generate_uid(), modality
    dataset.PatientID, dataset.StudyDate = f"patient {seed}", "20200101"
    dataset.Rows = dataset.Columns = 64
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = np.random.default_rng(seed).integers(0, 4096, (64, 64), dtype=np.uint16).tobytes()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    if jpeg2000:
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc; its REST interface is asked with urllib, which logs nothing."""

    http_port: int
    dicom_port: int
    username: str = "intake"
    password: str = "secret of the PACS"
    ae_title: str = "TESTPACS"

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def rest(self, method: str, path: str, body: bytes | None = None) -> object:
        """Ask the REST interface and return its JSON answer; the first second's refused connections raise OSError."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=body, method=method)
        login = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = response.read()
        return json.loads(answer) if answer else None

    def upload(self, dicom: bytes) -> str:
        """Put one DICOM file in and return Orthanc's own id of it."""
        return self.rest("POST", "/instances", dicom)["ID"]

    def store(
        self, instances: Sequence[str], *, called: str, port: int, calling: str | None = None, name: str = "receiver"
    ) -> dict:
        """C-STORE instances (Orthanc ids) to an AE on loopback; HTTPError (500) where the AE refuses."""
        modality = {"AET": called, "Host": "127.0.0.1", "Port": port}
        self.rest("PUT", f"/modalities/{name}", json.dumps(modality).encode())
        job = {"Resources": list(instances), "Synchronous": True, "LocalAet": calling or self.ae_title, "Timeout": 20}
        return self.rest("POST", f"/modalities/{name}/store", json.dumps(job).encode())


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Start Orthanc in `folder`, wait until it answers, stop it at the end."""
    pacs = Orthanc(free_port(), free_port())
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(_configuration(pacs, folder)))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([ORTHANC, str(configuration)], stdout=log, stderr=log, cwd=folder)
        try:
            _wait(pacs, process)
            yield pacs
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _configuration(pacs: Orthanc, folder: Path) -> dict:
    return {
        "Name": "test PACS",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
        "HttpPort": pacs.http_port,
        "HttpThreadsCount": 4,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {pacs.username: pacs.password},
        "DicomPort": pacs.dicom_port,
        "DicomAet": pacs.ae_title,
        "DicomScuTimeout": 20,
        "SaveJobs": False,
    }


def _wait(pacs: Orthanc, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _STARTUP_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"Orthanc ended at once with code {process.returncode}; see orthanc.log in its folder")
        try:
            pacs.rest("GET", "/system")
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"Orthanc did not answer within {_STARTUP_S} s")
