"""Synthetic chest radiographs, so that everything runs without a hospital's images.

A phantom is drawn from formulas and random numbers, never from a patient, and says so wherever it appears:
in the manifest, in the PNG and in the name of its hospital. It exists for demonstrations, tests and
rehearsals of a federation. A figure measured on phantoms says nothing about patients.

The hospitals differ on purpose in exposure, noise, field of view, habitus, lead marker, prevalence and film
aspect, each a named knob, so that shift between sites can be studied where its cause is known.
"""

import csv
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from multimix.data import phantom_anatomy as anatomy
from multimix.errors import InputError
from multimix.randomness import stream

GENERATOR_VERSION = 1
"""Raise it with every change that alters a pixel: folders of another version are not reused."""

MANIFEST_COLUMNS = (
    "image",
    "mask",
    "source",
    "site",
    "label",
    "finding",
    "patient_id",
    "view",
    "licence",
    "mask_origin",
)
MINIMUM_IMAGE_SIZE = 32
GOLDEN_STEP = 0.6180339887498949
Marker = Literal["none", "L", "R", "dot"]
MARKERS: tuple[Marker, ...] = ("R", "none", "L", "dot")
ASPECTS = (1.0, 0.84, 1.2, 0.92)


class PhantomHospital(BaseModel):
    """How one imaginary hospital's films differ from another's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    exposure: Annotated[float, Field(ge=0.4, le=2.5)] = 1.0
    """Dose at the film, 1 nominal; a higher exposure is a darker film."""
    noise: Annotated[float, Field(ge=0, le=3)] = 1.0
    """Quantum noise, 1 nominal."""
    field_of_view: Annotated[float, Field(ge=0.8, le=1.5)] = 1.0
    """1 frames the thorax; above, arms and abdomen come into view."""
    habitus: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Mean build of the patients, -1 slim to 1 stout."""
    marker: Marker = "none"
    prevalence: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of patients with pneumonia."""
    image_aspect: Annotated[float, Field(ge=0.5, le=2)] = 1.0
    """Width by height."""


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph: image uint8 and lung mask bool, both [height, width], and its label."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    pneumonia: bool


def default_hospitals(count: int, seed: int) -> tuple[PhantomHospital, ...]:
    """Return `count` different hospitals, phantom-a, phantom-b, ...; a longer list begins with a shorter one.

    Raises:
        InputError: the count is not in 1 to 26.
    """
    if not 1 <= count <= 26:  # noqa: PLR2004
        raise InputError("phantom_hospitals", f"{count} phantom hospitals asked for; give 1 to 26.")
    return tuple(_hospital(index, seed) for index in range(count))


def _hospital(index: int, seed: int) -> PhantomHospital:
    # Additive sequences with irrational steps: neighbours are far apart and no two hospitals coincide.
    starts = stream(seed, "phantom", "hospitals").random(5)
    steps = np.array([GOLDEN_STEP, 0.4142135623730951, 0.7320508075688772, 0.3166247903554, 0.6457513110645906])
    exposure, noise, view, habitus, prevalence = ((starts + index * steps) % 1).tolist()
    return PhantomHospital(
        name=f"phantom-{chr(ord('a') + index)}",
        exposure=round(0.6 * 2.9**exposure, 3),
        noise=round(0.5 + 1.3 * noise, 3),
        field_of_view=round(0.95 + 0.25 * view, 3),
        habitus=round(-0.7 + 1.4 * habitus, 3),
        marker=MARKERS[index % len(MARKERS)],
        prevalence=round(0.3 + 0.35 * prevalence, 3),
        image_aspect=ASPECTS[index % len(ASPECTS)],
    )


def draw_phantom(hospital: PhantomHospital, *, patient: int, seed: int, image_size: int) -> Phantom:
    """Draw one patient of a hospital: a pure function of its arguments.

    `image_size` is the longer side in pixels. The anatomy does not depend on image size, exposure, noise or
    prevalence: the same patient at prevalence 0 is the same film without the opacities, grain included.

    Raises:
        InputError: the image size is below 32 pixels.
    """
    if image_size < MINIMUM_IMAGE_SIZE:
        raise InputError(
            "phantom_image_size", f"Phantom of {image_size} pixels asked for; {MINIMUM_IMAGE_SIZE} at least."
        )
    key = (seed, "phantom", hospital.name, patient)
    aspect = hospital.image_aspect
    height, width = (max(1, round(image_size * min(1.0, share))) for share in (1 / aspect, aspect))
    build = anatomy.sample_build(stream(*key, "build"), habitus=hospital.habitus)
    film = anatomy.film_of(build, height=height, width=width, field_of_view=hospital.field_of_view)
    chest = anatomy.draw_chest(build, film, stream(*key, "chest"))
    pneumonia = _has_pneumonia(hospital, patient, seed)
    attenuation = chest.tissue + chest.vessels - chest.air
    if pneumonia:
        share = _consolidation(chest, film, stream(*key, "opacity"))
        attenuation = chest.tissue + (chest.vessels - chest.air) * (1 - share)
    image = _develop(attenuation, hospital, stream(*key, "film"))
    return Phantom(_stamp(image, hospital.marker, stream(*key, "marker")), chest.lung, pneumonia)


def _consolidation(chest: anatomy.Chest, film: anatomy.Film, rng: np.random.Generator) -> anatomy.Field:
    """Draw one to three opacities: the share of air that fluid replaces, [height, width] in [0, 1].

    Patches lie in the lung, more often low, with ragged borders and a mottled inside. Size, number and
    density vary from hardly visible to lobar.
    """
    rows, columns = np.nonzero(chest.lung)  # sorted from the top of the film to its bottom
    keep = np.ones(chest.lung.shape, np.float32)
    severity = rng.uniform(0.32, 0.9)
    for _ in range(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])):
        row = rows[int(rng.beta(1.6, 1.1) * (rows.size - 1))]
        across_row = columns[rows == row]
        column = across_row[int(rng.random() * across_row.size)]
        x0, y0 = film.x[row, column], film.y[row, column]
        radius = np.float32(rng.uniform(0.17, 0.46))
        stretch, angle = np.exp(rng.normal(0, 0.25)), rng.uniform(0, np.pi)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        along = (cos * (film.x - x0) + sin * (film.y - y0)) / np.float32(stretch)
        across = (cos * (film.y - y0) - sin * (film.x - x0)) * np.float32(stretch)
        distance = np.sqrt(along * along + across * across) / radius
        ragged = 0.34 * anatomy.mottle(rng, chest.lung.shape, 10) + 0.2 * anatomy.mottle(rng, chest.lung.shape, 30)
        patch = 1 / (1 + np.exp(np.clip((distance + ragged - 0.9) / 0.26, -30, 30)))
        keep *= 1 - np.float32(severity * rng.uniform(0.7, 1.1)) * patch
    share: anatomy.Field = np.clip(1 - keep, 0, 0.97).astype(np.float32)
    return share


def _has_pneumonia(hospital: PhantomHospital, patient: int, seed: int) -> bool:
    """Spread the cases evenly over patient numbers: even ten patients hold about the stated prevalence."""
    start = stream(seed, "phantom", hospital.name, "label").random()
    return bool((start + patient * GOLDEN_STEP) % 1 < hospital.prevalence)


def _develop(attenuation: anatomy.Field, hospital: PhantomHospital, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Expose a film: scatter, quantum noise, detector blur, characteristic curve."""
    size = max(attenuation.shape)
    primary = np.exp(-np.maximum(attenuation, 0))
    spread = ndimage.uniform_filter(ndimage.uniform_filter(primary, size // 7), size // 9)
    scatter = np.float32(rng.uniform(0.1, 0.28))
    signal = (1 - scatter) * primary + scatter * spread
    grain = rng.standard_normal(signal.shape, dtype=np.float32)
    density = -np.log(signal) + np.float32(0.016 * hospital.noise) * grain / np.sqrt(signal + np.float32(0.02))
    density = ndimage.gaussian_filter(density, max(0.45, size / 400), truncate=3)
    drift = rng.normal(0, 0.10)
    contrast = rng.uniform(0.85, 1.1)
    middle = 1.4 + (0.75 * np.log(hospital.exposure) - drift) / contrast
    fog = 1 / (1 + np.exp(2.1 * contrast * (middle - 0.1)))
    curve = 1 / (1 + np.exp(-2.1 * contrast * (density - middle)))
    image: npt.NDArray[np.uint8] = (255 * np.clip((curve - fog) / (1 - fog), 0, 1) + 0.5).astype(np.uint8)
    return image


def _stamp(image: npt.NDArray[np.uint8], marker: Marker, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Lay a lead marker on the film: L at the patient's left (image right), R and the dot opposite."""
    if marker == "none":
        return image
    height, width = image.shape
    side = 0.06 * max(image.shape)
    left = (0.92 if marker == "L" else 0.08) * width + rng.normal(0, 0.01) * width - side / 2
    top = (0.08 + rng.normal(0, 0.015)) * height
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    strokes: dict[Marker, list[list[tuple[float, float]]]] = {
        "L": [[(0.2, 0), (0.2, 1), (0.8, 1)]],
        "R": [[(0.2, 1), (0.2, 0), (0.7, 0.05), (0.75, 0.4), (0.25, 0.5), (0.8, 1)]],
    }
    line = max(1, round(side / 6))
    for stroke in strokes.get(marker, ()):
        pen.line([(left + side * x, top + side * y) for x, y in stroke], fill=250, width=line)
    if marker == "dot":
        pen.ellipse((left, top, left + side / 2, top + side / 2), fill=250)
    return np.asarray(picture)


def write_phantoms(out: Path, *, hospitals: int, patients: int, image_size: int, seed: int) -> Path:
    """Write `patients` phantoms for each of `hospitals` default hospitals and return the manifest's path.

    The folder appears whole or not at all. A folder that already holds the same phantoms is reused.

    Raises:
        InputError: a count is out of range, or the folder holds something else.
    """
    if patients < 1:
        raise InputError("phantom_patients", f"{patients} patients for each hospital asked for; give 1 or more.")
    wanted = {
        "synthetic": True,
        "generator_version": GENERATOR_VERSION,
        "hospitals": hospitals,
        "patients": patients,
        "image_size": image_size,
        "seed": seed,
    }
    if _holds(out, wanted):
        return out / "manifest.csv"
    chosen = default_hospitals(hospitals, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        partial = Path(scratch) / "phantoms"
        rows = [row for hospital in chosen for row in _write_hospital(partial, hospital, patients, image_size, seed)]
        with (partial / "manifest.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([MANIFEST_COLUMNS, *rows])
        (partial / "phantoms.json").write_text(json.dumps(wanted, indent=2) + "\n")
        try:
            partial.rename(out)
        except OSError:
            if not _holds(out, wanted):  # another process was not faster with the same phantoms
                raise
    return out / "manifest.csv"


def _holds(out: Path, wanted: dict[str, int]) -> bool:
    """Return whether the folder holds exactly these phantoms; a missing or empty folder does not.

    Raises:
        InputError: the folder holds anything else, which is never overwritten.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "phantoms.json").read_text())
    except (OSError, ValueError):
        found = None
    files = wanted["hospitals"] * wanted["patients"]
    complete = (out / "manifest.csv").is_file() and all(
        len(list(out.glob(f"*/{folder}/*.png"))) == files for folder in ("images", "masks")
    )
    if found == wanted and complete:
        return True
    raise InputError(
        "phantom_folder",
        f"{out} holds something other than the phantoms asked for ({json.dumps(wanted)}), or some of their"
        " files are missing. Delete the folder, or write to another one.",
    )


def _write_hospital(
    folder: Path, hospital: PhantomHospital, patients: int, image_size: int, seed: int
) -> list[tuple[str, ...]]:
    """Write one hospital's PNGs under the folder and return its manifest rows."""
    for kind in ("images", "masks"):
        (folder / hospital.name / kind).mkdir(parents=True)
    note = PngImagePlugin.PngInfo()
    note.add_text("Description", "synthetic phantom, not a patient")
    rows: list[tuple[str, ...]] = []
    for patient in range(patients):
        phantom = draw_phantom(hospital, patient=patient, seed=seed, image_size=image_size)
        name = f"{hospital.name}-{patient:05d}"
        image, mask = (f"{hospital.name}/{kind}/{name}.png" for kind in ("images", "masks"))
        Image.fromarray(phantom.image).save(folder / image, pnginfo=note, compress_level=3)
        Image.fromarray(phantom.mask).save(folder / mask, pnginfo=note)
        label = "pneumonia" if phantom.pneumonia else "normal"
        row = (image, mask, hospital.name, "SYNTHETIC", label, "synthetic phantom", name, "PA")
        rows.append((*row, "synthetic, Apache-2.0", "synthetic phantom, excludes mediastinum"))
    return rows
