"""Where images come from: a folder of any depth, a manifest, received files, a PACS; each an iterator of items.

An item's key is a keyed hash of where it comes from and, for files, of size and time, so that nothing unchanged
is even opened again.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path

from client.intake.examine import Item, nobody
from client.intake.journal import Label
from client.intake.pacs import Pacs, PacsClient
from client.intake.receiver import spool_files
from multimix.data.dicom import Keys, number_key, patient_key
from multimix.data.manifest import Record
from multimix.data.pseudonyms import Pseudonyms
from multimix.data.radiographs import named_view

_DICOMDIR = "DICOMDIR"


def file_key(pseudonyms: Pseudonyms, file: Path) -> str:
    """Return the key of a file as it is now; "" parts stand for a file that cannot be asked."""
    try:
        stat = file.stat()
        return pseudonyms.of("file", str(file), str(stat.st_size), str(stat.st_mtime_ns))
    except OSError:
        return pseudonyms.of("file", str(file))


def folder_items(folder: Path, pseudonyms: Pseudonyms, *, without: Collection[str] = ()) -> Iterator[Item]:
    """Yield every file below a folder in the order of their names; links are not followed.

    `without` are keys of files that are something else: labels and their masks.
    """
    pending = [folder.resolve()]
    while pending:
        here = pending.pop()
        try:
            with os.scandir(here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            yield Item(pseudonyms.of("file", str(here)), "dicom", here)  # the worker finds it unreadable, and it counts
            continue
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and entry.name != _DICOMDIR:
                key = file_key(pseudonyms, Path(entry.path))
                if key not in without:
                    yield Item(key, "dicom", Path(entry.path))
        pending.extend(Path(entry.path) for entry in reversed(entries) if entry.is_dir(follow_symlinks=False))


def manifest_items(records: Iterable[Record], root: Path, pseudonyms: Pseudonyms) -> Iterator[Item]:
    """Yield the images of a manifest; their patients and views are what it says."""
    for record in records:
        file = (root / record.image).resolve()
        uid = picture_uid(record, pseudonyms)
        patient = patient_key(pseudonyms, record.patient_id, record.source) or nobody(pseudonyms, uid)
        view = named_view(record.view) or "frontal"
        key = pseudonyms.of("picture", file_key(pseudonyms, file), patient, view)  # a corrected row is looked at again
        yield Item(key, "picture", file, Keys(uid, patient, "", number_key(pseudonyms, record.patient_id)), view)


def mask_items(masks: Iterable[tuple[str, Path]]) -> Iterator[Item]:
    """Yield the mask files that labels or a manifest name: pictures or DICOM SEG."""
    for key, file in masks:
        yield Item(key, "dicom" if file.suffix.lower() == ".dcm" else "picture_mask", file)


def picture_uid(record: Record, pseudonyms: Pseudonyms) -> str:
    """Return what stands for a SOP instance UID where an image has none."""
    return pseudonyms.of("picture", record.source, record.image)


def manifest_labels(
    records: Iterable[Record], root: Path, pseudonyms: Pseudonyms
) -> tuple[list[Label], dict[str, Path]]:
    """Return what a manifest says of its images, and its mask files by key."""
    labels, masks = [], {}
    for record in records:
        mask_key = ""
        if record.mask:
            file = (root / record.mask).resolve()
            mask_key = file_key(pseudonyms, file)
            masks[mask_key] = file
        uid = picture_uid(record, pseudonyms)
        labels.append(Label(uid, "", "", record.label, record.split, mask_key, record.mask_convention))
    return labels, masks


def spool_items(spool: Path, pseudonyms: Pseudonyms) -> Iterator[Item]:
    """Yield the complete files that a PACS has sent."""
    for file in spool_files(spool):
        path = file.resolve()
        yield Item(file_key(pseudonyms, path), "dicom", path)


def pacs_items(settings: Pacs, pseudonyms: Pseudonyms) -> Iterator[Item]:
    """Yield what a PACS lists; an instance is retrieved only when its bytes are asked for.

    Raises:
        PacsError: the archive cannot be asked.
    """
    with PacsClient(settings) as client:
        for instance in client.search():
            uids = (instance.study_uid, instance.series_uid, instance.instance_uid)
            yield Item(pseudonyms.of("pacs", *uids), "dicom", partial(client.retrieve, instance))
