"""Predict for image files with a trained model: probabilities, masks and overlays as files."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from multimix.config import Frozen
from multimix.data.decode import Preprocessing, fit_image, read_image
from multimix.data.manifest import Record
from multimix.errors import InputError
from multimix.evaluation import MASK_THRESHOLD, predict
from multimix.network import MultiMixNetwork
from multimix.pictures import overlay_strip, png_bytes
from multimix.weights import load_model, saved_fit
from server.results import replace_file

_SUFFIXES = {".png", ".jpg", ".jpeg"}


class PredictionRow(Frozen):
    """One image's prediction; `overlay` and `mask` are file names in the output folder."""

    image: str
    pneumonia: float | None
    lung_fraction: float | None  # of the fitted image
    overlay: str
    mask: str | None


def predict_images(
    model: Path,
    images: list[Path],
    out: Path,
    *,
    fit: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[PredictionRow]:
    """Predict for files and folders of PNG or JPEG; write predictions.csv, masks and overlays into `out`.

    Raises:
        InputError: the model or an image cannot be read, there is none, or a file cannot be written.
    """
    if fit not in ("", "pad", "stretch"):
        raise InputError("fit_unknown", f"--fit {fit!r}: choose pad or stretch.")
    network = load_model(model)
    files = _image_files(images)
    chosen = fit or saved_fit(model)
    preprocessing = Preprocessing(image_size=network.config.image_size, fit="pad" if chosen == "pad" else "stretch")
    rows = []
    for number, file in enumerate(files):
        rows.append(_predict_file(network, file, out, preprocessing, number))
        if progress:
            progress(number + 1, len(files))
    text = io.StringIO()
    table = csv.DictWriter(text, list(PredictionRow.model_fields))
    table.writeheader()
    table.writerows(row.model_dump() for row in rows)
    replace_file(out / "predictions.csv", text.getvalue().encode())
    return rows


def _image_files(paths: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise InputError("image_missing", f"There is no file {path}: name PNG or JPEG images, or folders of them.")
    if not files:
        raise InputError("image_missing", "There is no PNG or JPEG image in what was named.")
    return files


def _predict_file(
    network: MultiMixNetwork, file: Path, out: Path, preprocessing: Preprocessing, number: int
) -> PredictionRow:
    pixels = fit_image(read_image(Record(row=0, image=file.name, patient_id="-"), root=file.parent), preprocessing)
    prediction = predict(network, torch.from_numpy(pixels.astype(np.float32) / 255.0)[None, None])
    mask = prediction.mask[0] >= MASK_THRESHOLD if prediction.mask is not None else None
    saliency = prediction.saliency[0] if prediction.saliency is not None else None
    stem = f"{number:04d}-{file.stem}"
    overlay = f"{stem}-overlay.png"
    replace_file(out / overlay, png_bytes(overlay_strip(pixels, prediction=mask, truth=None, saliency=saliency)))
    if mask is not None:
        replace_file(out / f"{stem}-mask.png", png_bytes(Image.fromarray(mask)))
    return PredictionRow(
        image=str(file),
        pneumonia=float(prediction.pneumonia[0]) if prediction.pneumonia is not None else None,
        lung_fraction=float(mask.mean()) if mask is not None else None,
        overlay=overlay,
        mask=f"{stem}-mask.png" if mask is not None else None,
    )
