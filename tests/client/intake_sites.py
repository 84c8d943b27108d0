"""Small sites for the tests of intake, and what a worker would have found, without a worker."""

from pathlib import Path

import numpy as np

from client.intake.cli import run_intake
from client.intake.examine import Examined
from client.intake.journal import Journal, open_journal
from client.intake.run import Summary
from client.settings import IntakeSettings, SiteFolder, new_site
from multimix.data.decode import geometry_of
from multimix.data.dicom import Keys, accession_key, number_key, patient_key, uid_key
from multimix.data.phantom_dicom import PhantomDicom, dicom_bytes, phantom_dataset
from multimix.data.pseudonyms import Pseudonyms, read_or_make_secret
from multimix.data.store import Store, open_store

SIZE = 32
WIDTH, HEIGHT = 72, 96  # of every image here


def make_site(path: Path, **settings: object) -> SiteFolder:
    site = new_site(path, "clinic", image_size=SIZE)
    quick = {"intake": IntakeSettings(workers=1, seconds_per_file=60)}
    return SiteFolder(site.path, site.settings.model_copy(update={**quick, **settings}))


def pseudonyms_of(site: SiteFolder) -> Pseudonyms:
    return Pseudonyms(read_or_make_secret(site.secret))


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a smooth grey picture, [height, width]; every seed another."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 6)).astype(np.uint8)
    return np.kron(coarse, np.ones((-(-height // 6), -(-width // 6)), np.uint8))[:height, :width]


def dataset(seed: int, *, patient: str = "P1", accession: str = "A1", uid: str = "", issuer: str = "", **options):
    made = phantom_dataset(
        picture(seed),
        patient_id=patient,
        accession=accession,
        seed=seed,
        sop_instance_uid=uid or f"1.2.3.{seed}",
        options=PhantomDicom.model_validate(options),
    )
    if issuer:
        made.IssuerOfPatientID = issuer
    return made


def write_dicom(file: Path, seed: int, **about) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(dicom_bytes(dataset(seed, **about), preamble=about.get("preamble", True)))
    return file


def take(site: SiteFolder, source: Path | None = None, **how) -> Summary:
    return run_intake(site, *(() if source is None else (source,)), **how)


def store_of(site: SiteFolder) -> Store:
    return open_store(site.store)


def journal_of(site: SiteFolder, rules: str = ""):
    return open_journal(site.intake, site.settings.preprocessing, rules=rules)


def found_image(
    site: SiteFolder,
    uid: str,
    *,
    patient: str = "P1",
    accession: str = "",
    grey: int = 100,
    content: str = "",
    view: str = "PA",
    review: str = "",
) -> Examined:
    """Return what a worker finds in an image of one grey level; its content is told by the level."""
    pseudonyms = pseudonyms_of(site)
    return Examined(
        kind="image",
        decision="review" if review else "accept",
        reason=review,
        file_hash=pseudonyms.content(f"{uid} {grey} {content}".encode()),
        keys=Keys(
            uid_key(pseudonyms, uid),
            patient_key(pseudonyms, patient),
            accession_key(pseudonyms, accession) if accession else "",
            number_key(pseudonyms, patient),
        ),
        view=view,
        modality="DX",
        syntax="1.2.840.10008.1.2.1",
        pixels=np.full((SIZE, SIZE), grey, np.uint8),
        geometry=geometry_of(site.settings.preprocessing, width=WIDTH, height=HEIGHT),
        content=pseudonyms.content((content or str(grey)).encode()),
    )


def found_mask(site: SiteFolder, *, image: str = "", patient: str = "", rows: int = 8, width: int = WIDTH) -> Examined:
    """Return what a worker finds in a mask whose upper `rows` are lung; with `image`, in a SEG of that UID."""
    pseudonyms = pseudonyms_of(site)
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[:rows] = 1
    return Examined(
        kind="mask",
        decision="accept",
        file_hash=pseudonyms.content(f"mask {image} {rows} {width}".encode()),
        keys=Keys(uid_key(pseudonyms, image) if image else "", patient_key(pseudonyms, patient) if patient else "", ""),
        pixels=pixels,
        geometry=geometry_of(site.settings.preprocessing, width=width, height=HEIGHT),
        content=pseudonyms.content(f"mask {rows}".encode()),
    )


def add_all(journal: Journal, *found: Examined) -> list[str]:
    """Note outcomes under keys of their own; return the reasons noted."""
    start = len(journal.met())
    reasons = [journal.add(f"key {start + number}", each) for number, each in enumerate(found)]
    journal.commit()
    return reasons


def everything_below(folder: Path) -> bytes:
    """Return all bytes of all files below a folder, in one piece."""
    return b"\n".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())
