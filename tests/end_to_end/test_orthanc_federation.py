"""The whole way: three hospitals' DICOM files in real archives, taken in over DICOMweb and C-STORE, then trained on."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.intake.cli import run_intake
from client.intake.receiver import Receiver, receive
from client.settings import open_site
from multimix.contract.run_config import RunConfig
from multimix.data.phantom import default_hospitals
from multimix.data.phantom_dicom import PhantomDicom, write_phantom_dicoms
from multimix.data.store import open_store
from sim.run import simulate
from tests.orthanc import free_port, running_orthanc

PATIENTS = 30
SIZE = 32
VARIETY = (
    PhantomDicom(),
    PhantomDicom(monochrome=1, bits_stored=14),
    PhantomDicom(modality="CR", transfer_syntax="jpeg2000_lossless"),
    PhantomDicom(modality="CR", monochrome=1, transfer_syntax="rle_lossless", padding=True),
    PhantomDicom(transfer_syntax="jpegls_lossless", view="AP"),
)


def hospital_files(folder: Path, index: int) -> list[Path]:
    hospital = default_hospitals(3, 0)[index]
    write_phantom_dicoms(
        folder, patients=PATIENTS, image_size=80, seed=index, hospital=hospital, options=VARIETY, with_masks=True
    )
    return sorted(folder.rglob("*.dcm"))


def new_site(folder: Path, name: str, settings: str) -> Path:
    made = CliRunner().invoke(app, ["init", name, "--site", str(folder), "--image-size", str(SIZE)])
    assert made.exit_code == 0, made.output
    with (folder / "site.toml").open("a") as file:
        file.write(settings)
    return folder


def over_dicomweb(sites: Path, files: Path, index: int, scratch: Path) -> None:
    with running_orthanc(scratch) as orthanc:
        for file in hospital_files(files, index):
            orthanc.upload(file.read_bytes())
        password = scratch / "password"
        password.touch(mode=0o600)
        password.write_text(orthanc.password)
        settings = (
            f'[pacs]\nurl = "{orthanc.dicomweb}"\nusername = "{orthanc.username}"\npassword_file = "{password}"\n'
        )
        site = new_site(sites / f"hospital-{index}", f"hospital-{index}", settings)
        arguments = ["intake", "--pacs", "--labels", str(files / "labels.csv"), "--site", str(site), "--json"]
        first, second = (CliRunner().invoke(app, arguments) for _ in range(2))
        assert json.loads(first.stdout)["outcomes"] == {"stored": 2 * PATIENTS}, first.output  # images and masks
        assert json.loads(second.stdout)["unchanged"] == 2 * PATIENTS
        assert json.loads(second.stdout)["holdings"]["generation"] == 1


def over_c_store(sites: Path, files: Path, index: int, scratch: Path) -> None:
    port = free_port()
    site = new_site(sites / f"hospital-{index}", f"hospital-{index}", "")
    folder = open_site(site)
    settings = Receiver(port=port, allowed_calling_ae=("ORTHANC",), minimum_free_bytes=0)
    stop = threading.Event()
    sent: list[object] = []
    with running_orthanc(scratch) as orthanc:
        ids = [orthanc.upload(file.read_bytes()) for file in hospital_files(files, index)]

        def send() -> None:
            orthanc.store(ids, called=settings.ae_title, port=port, calling="ORTHANC")

        def take() -> None:
            sent.append(run_intake(folder, received=True, labels=files / "labels.csv"))
            if sent[-1].holdings.images == PATIENTS:
                stop.set()

        sender = threading.Timer(0.5, send)
        watchdog = threading.Timer(60, stop.set)
        sender.start()
        watchdog.start()
        done = receive(settings, folder.received, on_quiet=take, quiet_s=0.5, stop=stop)
        watchdog.cancel()
        sender.join()
    assert done.stored == PATIENTS
    assert not list(folder.received.iterdir())  # taken in means gone from the spool


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    base = tmp_path_factory.mktemp("orthanc")
    for index, way in enumerate((over_dicomweb, over_dicomweb, over_c_store)):
        scratch = base / f"orthanc-{index}"
        scratch.mkdir()
        way(base / "sites", base / f"files-{index}", index, scratch)
    return base / "sites"


@pytest.mark.orthanc
def test_every_image_arrives_with_its_label_and_mask(sites):
    for folder in sorted(sites.iterdir()):
        store = open_store(folder / "store")
        assert len(store) == PATIENTS
        assert len(np.unique(store.patient)) == PATIENTS
        assert (store.mask_row >= 0).all()
        assert set(store.label.tolist()) == {0, 1}
        assert set(store.view.tolist()) == {"PA", "AP"}


@pytest.mark.orthanc
def test_a_federation_trains_from_stores_made_by_intake_from_orthanc(sites, tmp_path):
    config = RunConfig.model_validate(
        {
            "data": str(sites),
            "out": str(tmp_path / "run"),
            "hold_out": "hospital-2",
            "image_size": SIZE,
            "width": 2,
            "rounds": 2,
            "local_steps": 2,
            "images_per_group": 2,
            "device": "cpu",
        }
    )
    results, folder = simulate(config)
    assert {name: site.role for name, site in results.sites.items()} == {
        "hospital-0": "train",
        "hospital-1": "train",
        "hospital-2": "held-out",
    }
    assert (folder / "model.safetensors").exists()
    assert results.sites["hospital-2"].metrics["dice"] is not None
