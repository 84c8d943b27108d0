"""The list of a hospital's images, one CSV row each, and the files that it names.

A mistake here (a label in another spelling, a patient in two splits) would otherwise surface as a wrong
figure weeks later, so whatever is not understood is refused, with the row that a spreadsheet shows (header
is row 1).
Splits are by patient; a patient is the pair (source, patient_id): identifiers restart between hospitals.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multimix.errors import ManifestError, RunConfigError
from multimix.randomness import derive_seed

Label = Literal["normal", "pneumonia", "other", "unknown"]
Split = Literal["train", "validation", "test"]
Patient = tuple[str, str]
UInt8 = npt.NDArray[np.uint8]

SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
BEHIND_HEART: Final = "behind_heart"
MEDIASTINUM_EXCLUDED: Final = "mediastinum_excluded"


class Record(BaseModel):
    """One row of a manifest: an image, whose it is and what is known about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: int = Field(default=0, description="Row as a spreadsheet shows it; 0 when not read from a file.")
    image: str = Field(min_length=1, description="Path relative to the manifest's folder.")
    patient_id: str = Field(min_length=1, description="Unique inside a source.")
    mask: str = ""
    source: str = "site"
    site: str = ""
    label: Label = "unknown"
    finding: str = ""
    view: str = ""
    split: Split | Literal[""] = ""
    licence: str = ""
    mask_origin: str = ""
    sex: str = ""
    age: str = ""
    orig_name: str = ""
    orig_w: str = ""
    orig_h: str = ""

    @property
    def patient(self) -> Patient:
        """Who is imaged, unique over all sources."""
        return (self.source, self.patient_id)

    @property
    def mask_convention(self) -> str:
        """Which region the mask calls lung; Dice between two conventions is capped. Empty without a mask."""
        if "behind heart" in self.mask_origin.lower():
            return BEHIND_HEART
        return MEDIASTINUM_EXCLUDED if self.mask or self.mask_origin else ""


REQUIRED_COLUMNS: Final = ("image", "patient_id")
COLUMNS: Final = tuple(name for name in Record.model_fields if name != "row")


def cell_error(
    reason: str, *, where: Path, row: int, column: str, value: str, problem: str, remedy: str
) -> ManifestError:
    """Return an error that names the cell as a person finds it in a spreadsheet."""
    error = ManifestError(reason, f"{where}, row {row}, column {column}: {value!r} {problem}. {remedy}")
    error.cell = (row, column)
    return error


def read_manifest(path: Path) -> tuple[Record, ...]:
    """Return the checked rows of a CSV in their order.

    Raises:
        ManifestError: with a reason code per mistake; the message names file, row, column, value and remedy.
    """
    records = tuple(_record(path, row, cells) for row, cells in _rows(path))
    if not records:
        raise ManifestError("manifest_empty", f"{path} has a header but no image row. Add one row for each image.")
    _check_patients(path, records)
    _check_files(path, records)
    return records


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (spreadsheet row, cells that are not empty); blank rows count but are not yielded."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(path, header)
            for row, line in enumerate(lines, start=2):
                cells = [cell.strip() for cell in line]
                if any(cells):
                    yield row, _named(path, row, header, cells)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ManifestError(
            "manifest_missing", f"There is no manifest file {path}. Give the path of a CSV file."
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(
            "manifest_unreadable", f"{path} is not readable as UTF-8 CSV ({error}). Save it as 'CSV UTF-8'."
        ) from None


def _check_header(path: Path, header: Sequence[str]) -> None:
    allowed = f"Columns allowed are: {', '.join(COLUMNS)}; required are {' and '.join(REQUIRED_COLUMNS)}."
    if not any(header):
        raise ManifestError("manifest_empty", f"{path} is empty. Its first row must name the columns. {allowed}")
    for name in REQUIRED_COLUMNS:
        if name not in header:
            hint = " The cells must be separated by commas." if len(header) == 1 else ""
            raise ManifestError("column_missing", f"{path}, row 1: no column {name!r}.{hint} {allowed}")
    for position, name in enumerate(header):
        if name not in COLUMNS:
            raise ManifestError("column_unknown", f"{path}, row 1: column {name!r} is not known. Remove it. {allowed}")
        if name in header[:position]:
            raise ManifestError("column_duplicate", f"{path}, row 1: column {name!r} occurs twice. Keep one.")


def _named(path: Path, row: int, header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise ManifestError(
            "row_malformed",
            f"{path}, row {row}: {len(cells)} cells under {len(header)} columns. "
            "Give one cell per column, and put a cell that contains a comma in double quotes.",
        )
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


def _record(path: Path, row: int, cells: Mapping[str, str]) -> Record:
    try:
        return Record.model_validate({"row": row, **cells})
    except ValidationError as invalid:
        first = invalid.errors()[0]
    column = str(first["loc"][0])
    if column in REQUIRED_COLUMNS:
        raise cell_error(
            "value_missing",
            where=path,
            row=row,
            column=column,
            value="",
            problem="is empty",
            remedy="Fill it in.",
        )
    allowed = "train, validation, test" if column == "split" else "normal, pneumonia, other, unknown"
    raise cell_error(
        f"{column}_unknown",
        where=path,
        row=row,
        column=column,
        value=cells[column],
        problem=f"is not one of {allowed}, in lower case",
        remedy="Correct it or leave the cell empty.",
    )


def _check_patients(path: Path, records: Sequence[Record]) -> None:
    seen: dict[Patient, Record] = {}
    for record in records:
        if not record.split:
            continue
        first = seen.setdefault(record.patient, record)
        if first.split != record.split:
            raise cell_error(
                "patient_in_two_splits",
                where=path,
                row=record.row,
                column="split",
                value=record.split,
                problem=f"but patient {record.patient_id!r} of source {record.source!r} is in "
                f"{first.split!r} in row {first.row}",
                remedy="Put all images of a patient into one split.",
            )


def _check_files(path: Path, records: Sequence[Record]) -> None:
    folder = path.parent.resolve()
    rows: dict[Path, int] = {}
    for record in records:
        image = _file(path, folder, record, "image")
        if rows.setdefault(image, record.row) != record.row:
            raise cell_error(
                "image_duplicate",
                where=path,
                row=record.row,
                column="image",
                value=record.image,
                problem=f"is the image of row {rows[image]} again",
                remedy="Keep one of the two rows.",
            )
        if record.mask:
            _file(path, folder, record, "mask")


def _file(path: Path, folder: Path, record: Record, column: Literal["image", "mask"]) -> Path:
    value = record.image if column == "image" else record.mask
    reason, problem, remedy = "", "", ""
    try:
        file = (folder / value).resolve()
        exists = file.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL byte, a loop of links
        file, exists = folder / "?", False
    if not file.is_relative_to(folder):
        reason = "path_escapes"
        problem = f"leads out of the manifest's folder {folder}"
        remedy = "Move the file inside it and give a relative path."
    elif not exists:
        reason = f"{column}_missing"
        problem = "is not a file in the manifest's folder"
        remedy = "Correct the path (upper and lower case differ) or remove the row."
    if reason:
        raise cell_error(reason, where=path, row=record.row, column=column, value=value, problem=problem, remedy=remedy)
    return file


def split_ranked(count: int, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> tuple[Split, ...]:
    """Return the splits of `count` ranked patients: train first, then validation, then test.

    Shares are rounded so that they add up to `count`; a lone patient trains.

    Raises:
        RunConfigError: `fractions_invalid` unless the three are not negative and add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:  # noqa: PLR2004
        raise RunConfigError(
            "fractions_invalid",
            f"Split fractions {fractions} must not be negative and must add up to 1, as (0.7, 0.1, 0.2) do.",
        )
    train_end = round(fractions[0] * count)
    validation_end = round((fractions[0] + fractions[1]) * count)
    ends = (train_end, validation_end - train_end, count - validation_end)
    return tuple(split for split, size in zip(SPLITS, ends, strict=True) for _ in range(size))


def assign_splits(
    records: Sequence[Record], *, seed: int, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> tuple[Split, ...]:
    """Return the split of each record: by patient, per source, whatever the order of the rows.

    A `split` given in the manifest holds for all images of its patient; the other patients of the source are
    ranked by a hash of (seed, source, patient) and cut in the given proportions.
    """
    splits: dict[Patient, Split] = {r.patient: r.split for r in records if r.split}
    for source in {record.source for record in records}:
        free = {r.patient for r in records if r.source == source} - splits.keys()
        ranked = sorted(free, key=lambda patient: (derive_seed(seed, "split", *patient), patient))
        splits.update(zip(ranked, split_ranked(len(ranked), fractions), strict=True))
    return tuple(splits[record.patient] for record in records)
