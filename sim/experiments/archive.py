"""Finished cases in the repository: records and scores behind the published figures, one small file a case.

With them an experiment goes on on another machine, and every interval and test can be made again without training.
They hold no image, no mask and no model, and name patients by their place in a list.
"""

import io
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from multimix.errors import InputError
from multimix.files import write_atomically
from sim.experiments.case import AnyCase, case_name, needs
from sim.experiments.record import RECORD, SCORES, CaseRecord, fits
from sim.experiments.work import Place

FOLDER: Final = Path("docs/experiments")  # of a checkout: the summaries, and below it the cases
_FILES: Final = (SCORES, RECORD)  # a case is finished once its record is there: it is unpacked last
_THEN: Final = (1980, 1, 1, 0, 0, 0)  # the same case makes the same bytes


def archive_path(root: Path, name: str) -> Path:
    """Return where a checkout keeps a case."""
    return root / FOLDER / "cases" / f"{name}.zip"


def archive_cases(folders: Mapping[str, Path], root: Path) -> None:
    """Write the record and the scores of finished cases, by name, into the checkout at `root`."""
    for name, folder in folders.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as packed:  # scores are compressed already
            for file in _FILES:
                packed.writestr(zipfile.ZipInfo(file, _THEN), (folder / file).read_bytes())
        path = archive_path(root, name)
        if not path.exists() or path.read_bytes() != buffer.getvalue():
            write_atomically(path, buffer.getvalue(), mode=0o644)


def prune(names: Iterable[str], root: Path) -> None:
    """Remove the cases of a checkout that have none of these names."""
    kept = {archive_path(root, name) for name in names}
    for path in archive_path(root, "*").parent.glob("*.zip"):
        if path not in kept:
            path.unlink()


def take_over(cases: Sequence[AnyCase], place: Place, root: Path) -> tuple[str, ...]:
    """Unpack what a checkout keeps of cases that are not finished here, and return their names.

    Only a case of the very same configuration and data is taken over, and none whose model another one still needs.

    Raises:
        InputError: `archive_unreadable`, or the data cannot be used.
    """
    found: dict[str, dict[str, bytes]] = {}
    waiting = [case for case in cases if not place.finished(case)]
    for case in waiting:
        files = read_archive(archive_path(root, case_name(case)))
        if files is not None and fits(_record(files), case, place.fingerprint(case)):
            found[case_name(case)] = files
    needed = {name for case in waiting if case_name(case) not in found for name in needs(case)}
    taken = tuple(name for name in found if name not in needed)
    for name in taken:
        shutil.rmtree(place.out / name, ignore_errors=True)  # what was begun of it
        for file in _FILES:
            write_atomically(place.out / name / file, found[name][file])
    return taken


def read_archive(path: Path) -> dict[str, bytes] | None:
    """Return the files of a case that a checkout keeps, by name; None where it keeps none.

    Raises:
        InputError: `archive_unreadable`.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as packed:
            files = {file: packed.read(file) for file in _FILES}
        _record(files)
    except (OSError, KeyError, zipfile.BadZipFile, ValidationError) as error:
        raise InputError("archive_unreadable", f"{path.name} is damaged: take it from the repository again.") from error
    return files


def _record(files: Mapping[str, bytes]) -> CaseRecord:
    return CaseRecord.model_validate_json(files[RECORD])
