"""Labels and masks by CSV, joined to images by SOP instance UID, accession number or patient.

Keys are hashed as they are read. A mistake names row and column, never what stands there: messages end up in
tickets. Labels join when the store is written, so correcting them decodes nothing again.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, get_args

from client.intake.journal import Label
from client.intake.sources import file_key
from multimix.data.dicom import accession_key, patient_key, uid_key
from multimix.data.manifest import BEHIND_HEART, MEDIASTINUM_EXCLUDED, SPLITS
from multimix.data.manifest import Label as LabelName
from multimix.data.pseudonyms import Pseudonyms
from multimix.errors import SiteError

KEYS: Final = ("sop_instance_uid", "accession", "patient_id")
VALUES: Final = ("issuer", "label", "mask", "mask_convention", "split")
CONVENTIONS: Final = (MEDIASTINUM_EXCLUDED, BEHIND_HEART)
_ALLOWED: Final[Mapping[str, tuple[str, ...]]] = {
    "label": get_args(LabelName),
    "split": SPLITS,
    "mask_convention": CONVENTIONS,
}
LABEL_MAP_HELP: Final = ", ".join(_ALLOWED["label"])


class LabelsFile(NamedTuple):
    """The rows of a labels file, and the mask files that they name, by their keys."""

    labels: tuple[Label, ...]
    masks: tuple[tuple[str, Path], ...]


def label_error(reason: str, row: int, column: str, problem: str, remedy: str) -> SiteError:
    """Return an error that says where, and never what."""
    return SiteError(reason, f"Labels file, row {row}, column {column}: {problem}. {remedy}")


def read_labels(path: Path, pseudonyms: Pseudonyms, *, label_map: Mapping[str, LabelName]) -> LabelsFile:
    """Read a labels file; words other than ours are translated by the site's label map.

    Raises:
        SiteError: with a reason code for each mistake; it names row and column and quotes nothing.
    """
    masks: dict[str, Path] = {}
    labels, numbers = [], []
    folder = path.parent.resolve()
    for row, cells in _rows(path):
        mask_key = ""
        if cells.get("mask"):
            file = _mask_file(folder, cells["mask"], row)
            mask_key = file_key(pseudonyms, file)
            masks[mask_key] = file
        labels.append(_label(row, cells, pseudonyms, label_map, mask_key))
        numbers.append(row)
    if not labels:
        raise SiteError("labels_empty", "The labels file has no row below its header. Add one a patient or image.")
    _check_agreement(labels, numbers)
    return LabelsFile(tuple(labels), tuple(masks.items()))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(header)
            for row, line in enumerate(lines, start=2):
                cells = [cell.strip() for cell in line]
                if len(cells) != len(header) and any(cells):
                    problem = f"has {len(cells)} cells under {len(header)} columns"
                    raise SiteError("row_malformed", f"Labels file, row {row}: {problem}. Give one cell a column.")
                if any(cells):
                    yield row, {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    except (OSError, UnicodeDecodeError, csv.Error):
        raise SiteError(
            "labels_unreadable", "The labels file cannot be read as UTF-8 CSV. Save it as 'CSV UTF-8'."
        ) from None


def _check_header(header: list[str]) -> None:
    columns = (*KEYS, *VALUES)
    known = f"Columns are {', '.join(columns)}."
    if len(set(header)) != len(header) or not set(header) <= set(columns):
        unknown = sum(name not in columns for name in header)
        raise SiteError("column_unknown", f"Labels file, row 1: {unknown} columns unknown, or one named twice. {known}")
    if not set(header) & set(KEYS):
        raise SiteError("column_missing", f"Labels file, row 1: one of {', '.join(KEYS)} must be there. {known}")


def _mask_file(folder: Path, name: str, row: int) -> Path:
    try:
        file = (folder / name).resolve()
        inside = file.is_relative_to(folder) and file.is_file()
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        remedy = "Give a path relative to the labels file, upper and lower case as on disk."
        raise label_error("mask_missing", row, "mask", "names no file in the folder of the labels file", remedy)
    return file


def _label(
    row: int, cells: Mapping[str, str], pseudonyms: Pseudonyms, label_map: Mapping[str, LabelName], mask_key: str
) -> Label:
    uid, accession, patient = (cells.get(name, "") for name in KEYS)
    if not (uid or accession or patient):
        remedy = "Fill in a key, or remove the row."
        raise label_error("value_missing", row, " or ".join(KEYS), "all keys are empty", remedy)
    named = dict(cells)
    if "label" in named and named["label"] not in _ALLOWED["label"]:
        named["label"] = label_map.get(named["label"], named["label"])
    for column, allowed in _ALLOWED.items():
        if column in named and named[column] not in allowed:
            remedy = f"Write one of {', '.join(allowed)}; words for labels can be added to [label_map] in site.toml."
            raise label_error(f"{column}_unknown", row, column, "this word is not known", remedy)
    return Label(
        uid=uid_key(pseudonyms, uid) if uid else "",
        accession=accession_key(pseudonyms, accession) if accession else "",
        patient=patient_key(pseudonyms, patient, cells.get("issuer", "")) if patient else "",
        label=named.get("label", ""),
        split=named.get("split", ""),
        mask_key=mask_key,
        mask_convention=named.get("mask_convention", ""),
    )


def _check_agreement(labels: list[Label], numbers: list[int]) -> None:
    """Refuse two rows of one key that say different things."""
    said: dict[tuple[str, str, str], int] = {}
    for index, label in enumerate(labels):
        first = said.setdefault(label[:3], index)
        other = labels[first]
        for column in ("label", "split", "mask_key", "mask_convention"):
            values = {getattr(label, column), getattr(other, column)} - {""}
            if len(values) > 1:
                raise label_error(
                    f"{column.removesuffix('_key')}_conflict",
                    numbers[index],
                    column.removesuffix("_key"),
                    f"says otherwise than row {numbers[first]} of the same key",
                    "Keep one of the rows.",
                )
