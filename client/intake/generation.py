"""Generations of the store: what training reads, written from the journal whenever it would differ.

A generation is a folder with an index of its own and hard links to the shared arrays of pixels, complete before
the link `current` names it. A process that has opened one keeps it, whatever is taken in or removed later.
"""

import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.intake.journal import Image, Journal, Label, Mask
from client.intake.pinned import fingerprints_in_use, in_use
from client.settings import SiteFolder
from multimix.data.decode import Preprocessing
from multimix.data.manifest import SPLITS, Split
from multimix.data.pseudonyms import Pseudonyms
from multimix.data.store import CURRENT, IMAGES, INDEX, MASKS
from multimix.data.store_writer import Entry, fsync, staged, write_index

KEPT: Final = 3  # generations that stay, the current one among them
SHARES: Final = (0.7, 0.8)  # below the first a patient trains, below the second validates, above tests
_PREFIX: Final = "generation-"


@dataclass(frozen=True)
class Join:
    """What the labels files gave the images; counts of rows and images that did not meet."""

    entries: tuple[Entry, ...]
    problems: Mapping[str, int]


def join(
    images: Sequence[Image],
    labels: Sequence[Label],
    masks: Mapping[str, Mask],
    *,
    pseudonyms: Pseudonyms,
    source: str,
    mask_convention: str,
) -> Join:
    """Join labels and masks to images: by UID before accession before patient."""
    told = _Told(labels, images)
    by_image = {mask.image_uid: mask for mask in masks.values() if mask.image_uid}
    problems: Counter[str] = Counter()
    splits, problems["patient_in_two_splits"] = _splits(images, told, pseudonyms)
    shared = Counter(key for image in images for key in {row.mask_key for row in told.of(image)})
    entries = []
    for image in images:
        rows = told.of(image)
        mask, convention = by_image.get(image.uid), mask_convention
        named = next((row for row in rows if row.mask_key), None)
        if named is not None:
            mask, convention = masks.get(named.mask_key), named.mask_convention or mask_convention
            if shared[named.mask_key] > 1:
                mask, problems["mask_ambiguous"] = None, problems["mask_ambiguous"] + 1
            elif mask is None or mask.image_uid not in {"", image.uid}:
                mask, problems["mask_unusable"] = None, problems["mask_unusable"] + 1
        if mask is not None and (mask.width, mask.height) != image.geometry[:2]:
            mask, problems["mask_size_differs"] = None, problems["mask_size_differs"] + 1
        entries.append(
            Entry(
                image_row=image.record,
                mask_row=None if mask is None else mask.record,
                content_hash=image.content,
                mask_hash="" if mask is None else mask.content,
                patient=image.patient,
                source=source,
                site="",
                view=image.view,
                label=next((row.label for row in rows if row.label), "unknown"),
                mask_convention="" if mask is None else convention,
                split=splits[image.patient],
                geometry=image.geometry,
                brightness=image.brightness,
            )
        )
    problems["labels_without_image"], problems["labels_disagree"] = told.unused(), told.disagreeing
    return Join(tuple(entries), {name: count for name, count in problems.items() if count})


class _Told:
    """The rows of labels files by the image that they are about."""

    def __init__(self, labels: Sequence[Label], images: Sequence[Image]) -> None:
        rows: dict[tuple[int, str], list[Label]] = defaultdict(list)
        for label in labels:
            level = next(i for i in range(3) if label[i])
            rows[level, label[level]].append(label)
        self._of: dict[int, list[Label]] = {}
        self.disagreeing = 0  # rows whose first key meets an image and another key does not
        met: set[tuple[int, str]] = set()
        agreeing: set[Label] = set()
        for image in images:
            keys = [key for key in enumerate((image.uid, image.accession, image.patient)) if key[1] and key in rows]
            self._of[image.id] = [row for key in keys for row in rows[key] if _agrees(row, image)]
            met.update(keys)
            agreeing.update(self._of[image.id])
        self._unused = len(rows.keys() - met)
        self.disagreeing = sum(row not in agreeing for key in met for row in rows[key])

    def of(self, image: Image) -> list[Label]:
        """Return the rows about an image, most specific first."""
        return self._of[image.id]

    def unused(self) -> int:
        """Return how many keys met no image."""
        return self._unused


def _agrees(row: Label, image: Image) -> bool:
    """Whether the further keys of a row fit as well: accession numbers restart between patients."""
    pairs = zip(row[:3], (image.uid, image.accession, image.patient), strict=True)
    return all(said in {"", known} for said, known in pairs)


def _splits(images: Sequence[Image], told: _Told, pseudonyms: Pseudonyms) -> tuple[dict[str, Split], int]:
    """Return each patient's split, and how many were told two: by a keyed hash, so that it never changes, or as told.

    A patient whose images are told different splits goes to the latest of them, wholly: what is to be tested is
    never trained on.
    """
    given: dict[str, set[int]] = defaultdict(set)
    for image in images:
        given[image.patient].update(SPLITS.index(row.split) for row in told.of(image) if row.split in SPLITS)
    splits = {
        patient: SPLITS[max(said) if said else sum(pseudonyms.fraction("split", patient) >= share for share in SHARES)]
        for patient, said in given.items()
    }
    return splits, sum(len(said) > 1 for said in given.values())


def publish(
    journal: Journal,
    store: Path,
    found: Join,
    preprocessing: Preprocessing,
    *,
    group: int | None,
    pinned: frozenset[str] | None = frozenset(),
) -> int:
    """Make a generation of the accepted images unless the current one says the same; return its number.

    Readable by this user only, or by the given group too. Of the older ones the newest stay, and those with a
    `pinned` fingerprint (None: all).
    """
    digest = hashlib.sha256(
        json.dumps([journal.pool.name, preprocessing.version, group, found.entries]).encode()
    ).hexdigest()
    number = int(journal.meta("generation") or 0)
    if journal.meta("published") == digest and current(store) == number:
        _remove_old(store, number, pinned)
        return number
    number = max([number, *generations(store)]) + 1
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    for leftover in store.glob(f".{_PREFIX}*"):
        shutil.rmtree(leftover)  # of a publication that was killed
    with staged(store / _name(number)) as folder:
        for name in (IMAGES, MASKS):
            os.link(journal.pool / name, folder / name)
        write_index(folder / INDEX, found.entries, preprocessing=preprocessing)
        _grant(folder, group)
    _grant_folder(store, group)
    if group is not None:
        os.chown(store.parent, -1, group)
        store.parent.chmod(0o710)  # the group passes through to the store and lists nothing else
    _point(store, number)
    journal.remember("generation", str(number))
    journal.remember("published", digest)
    journal.commit()
    _remove_old(store, number, pinned)
    return number


@dataclass(frozen=True)
class Holdings:
    """What the store holds, and the labels and masks that met no image or no fitting one."""

    generation: int
    images: int
    patients: int
    review: int
    labelled: int
    masked: int
    problems: Mapping[str, int]


def joined(site: SiteFolder, journal: Journal) -> Join:
    """Join all that the journal holds, by the site's settings."""
    return join(
        journal.kept_images("accept"),
        journal.labels(),
        journal.kept_masks(),
        pseudonyms=site.pseudonyms(),
        source=site.settings.name,
        mask_convention=site.settings.mask_convention,
    )


def write_generation(site: SiteFolder, journal: Journal) -> Holdings:
    """Join, publish and count what the journal holds.

    Raises:
        StoreError: `disk_full`, `cannot_write`.
    """
    found = joined(site, journal)
    number = publish(
        journal, site.store, found, site.settings.preprocessing, group=site.group, pinned=fingerprints_in_use(site)
    )
    return Holdings(
        generation=number,
        images=len(found.entries),
        patients=len({entry.patient for entry in found.entries}),
        review=len(journal.kept_images("review")),
        labelled=sum(entry.label in {"normal", "pneumonia"} for entry in found.entries),
        masked=sum(entry.mask_row is not None for entry in found.entries),
        problems=found.problems,
    )


def _grant(folder: Path, group: int | None) -> None:
    for path in folder.iterdir():
        path.chmod(0o600 if group is None else 0o640)
        if group is not None:
            os.chown(path, -1, group)
    _grant_folder(folder, group)


def _grant_folder(folder: Path, group: int | None) -> None:
    folder.chmod(0o700 if group is None else 0o750)
    if group is not None:
        os.chown(folder, -1, group)


def _point(store: Path, number: int) -> None:
    link = store / f".{CURRENT}"
    link.unlink(missing_ok=True)
    link.symlink_to(_name(number))
    link.replace(store / CURRENT)
    fsync(store)


def _name(number: int) -> str:
    return f"{_PREFIX}{number:06d}"


def generations(store: Path) -> list[int]:
    """Return the numbers of the generations there are, oldest first."""
    return sorted(int(path.name.removeprefix(_PREFIX)) for path in store.glob(f"{_PREFIX}*"))


def current(store: Path) -> int:
    """Return the number of the current generation, 0 if there is none."""
    link = store / CURRENT
    if not (link.is_symlink() and link.exists()):
        return 0
    return int(link.readlink().name.removeprefix(_PREFIX))


def _remove_old(store: Path, number: int, pinned: frozenset[str] | None, *, keep: int = KEPT) -> None:
    for old in generations(store):
        if old <= number - keep and not in_use(store / _name(old), pinned):
            shutil.rmtree(store / _name(old))


def remove_all_but_current(store: Path) -> None:
    """Remove every generation but the current one, after a purge."""
    _remove_old(store, current(store), frozenset(), keep=1)
