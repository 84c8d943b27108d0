"""`site.html`: what a hospital took in, for the eyes of its own engineer, as one self-contained file.

Contact sheets, files set aside by reason, histograms, labels that met no image, and the card that would leave. It
shows patients' images, so it stays in the site's folder, readable by this user only; it names images by their
number in the journal and holds no identifier, pseudonym, path or file name. client/intake/site.html.md lays it out,
multimix/bars.py draws. Nothing is fetched: a content security policy in the page forbids it.
"""

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image as Picture
from PIL import ImageChops, ImageFilter
from pydicom.uid import UID

from client.hospital import card_of
from client.intake.generation import current, joined
from client.intake.journal import Image, Journal
from client.intake.page_charts import draw_charts, spread
from client.intake.purge import finish_purge
from client.intake.reasons import FLAGS, REASONS, REVIEW, Reason
from client.intake.review import Queue, pixels_of
from client.settings import SiteFolder
from multimix.bars import level_bar
from multimix.data.manifest import SPLITS
from multimix.data.store import LABEL_CODES, open_store
from multimix.data.store_writer import Entry
from multimix.errors import Refused, SiteError, StoreError
from multimix.files import write_atomically
from multimix.pictures import TRUTH_COLOUR
from multimix.training import resolve_device

FILE: Final = "site.html"
TILE: Final = 256  # pixels of a picture's side
FLAG_SHARE: Final = 5  # a sheet of flagged images holds this fraction of the pictures of the others

_MODALITIES: Final = {
    "CR": "CR, computed radiography",
    "DX": "DX, digital radiography",
    "SEG": "SEG, segmentation",
    "picture": "PNG or JPEG",
    "other": "another modality",
    "": "not known: no readable DICOM header",
}
_LABELS: Final = {"unknown": "no label", "other": "other finding"}
_NO_CARD: Final = {
    "store_missing": "nothing was taken in yet",
    "store_empty": "no image is accepted yet",
    "store_damaged": "the store cannot be read; run the intake again",
    "cohort_too_small": "fewer patients than policy.minimum_cohort in site.toml",
}


class Shown(NamedTuple):
    """An image and the name it goes by here; `entry` is what the store says of it, None while it waits."""

    name: str
    image: Image
    entry: Entry | None


class Tile(NamedTuple):
    """A picture of an image with its caption; `uri` is the picture itself."""

    name: str
    uri: str
    words: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A line of a table of counts."""

    name: str
    count: int
    bar: Markup
    meaning: str = ""
    remedy: str = ""


def write_page(site: SiteFolder, *, images: int) -> Path:
    """Write `site.html` into the site's folder (mode 0600) and return its path.

    At most `images` pictures of accepted images, evenly spread over the order they came in, as many of the review
    queue, and a fifth of that for each quality flag. Pixels of 500 images at most are read for the histogram.

    Raises:
        SiteError: `intake_running`, `patient_in_two_splits` and others of the journal.
    """
    path = site.path / FILE
    with site.journal() as journal:
        finish_purge(site, journal)
        # Written before the journal is let go: no purge can come between and miss this page.
        write_atomically(path, render(site, journal, images=images).encode())
    return path


def render(site: SiteFolder, journal: Journal, *, images: int) -> str:
    """Return the page."""
    accepted, problems = _accepted(site, journal)
    waiting = [Shown(name, image, None) for name, image in Queue.of(journal).named()]
    entries = [entry for _, _, entry in accepted if entry is not None]
    card, no_card = _card(site)
    return _TEMPLATE.render(
        site=site.settings.name,
        written=datetime.now(UTC),
        generation=current(site.store),
        stale=_stale(site, len(entries)),
        totals=_totals(journal),
        holdings=_holdings(entries),
        views=_rows(Counter(entry.view or "unknown" for entry in entries)),
        conventions=_rows(Counter(entry.mask_convention for entry in entries if entry.mask_row is not None)),
        accepted=accepted,
        sample=[_tile(journal, shown) for shown in spread(accepted, images)],
        waiting=waiting,
        queue=[_tile(journal, shown) for shown in waiting[:images]],
        review={name: reason for name, reason in REVIEW.items() if any(s.image.reason == name for s in waiting)},
        flags=_rows(_flag_counts([*accepted, *waiting]), FLAGS),
        flagged=_flagged(journal, [*accepted, *waiting], images // FLAG_SHARE),
        outline=TRUTH_COLOUR,
        aside=_rows({name: n for name, n in journal.counts("reason").items() if name and name not in REVIEW}, REASONS),
        modalities=_rows({_MODALITIES.get(name, "?"): count for name, count in journal.counts("modality").items()}),
        syntaxes=_rows(_syntaxes(journal)),
        charts=draw_charts(journal, [shown.image for shown in accepted]),
        labels=len(journal.labels()),
        problems=_rows(problems, REASONS),
        card=card,
        no_card=no_card,
        why_no_card=_NO_CARD.get(no_card, ""),
    )


def _accepted(site: SiteFolder, journal: Journal) -> tuple[list[Shown], Mapping[str, int]]:
    """Return the accepted images with what the labels files give them, and the joins that failed."""
    images, found = journal.kept_images("accept"), joined(site, journal)
    shown = [Shown(f"a{image.id}", image, entry) for image, entry in zip(images, found.entries, strict=True)]
    return shown, found.problems


def _stale(site: SiteFolder, images: int) -> bool:
    """Whether the store is not what the journal would make it: an intake was interrupted."""
    try:
        return len(open_store(site.store)) != images
    except StoreError:
        return images > 0


def _totals(journal: Journal) -> dict[str, int]:
    """Return what became of all that intake ever met."""
    decisions = Counter(image.decision for image in journal.kept_images())
    counts = journal.counts("decision")
    masks = sum(counts.values()) - counts.get("aside", 0) - decisions.total()
    names = {"accept": "images accepted", "review": "images waiting for review", "rejected": "images rejected"}
    totals: dict[str, int] = {words: decisions[name] for name, words in names.items()}
    return totals | {"lung masks": masks, "set aside": counts.get("aside", 0)}


def _holdings(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Return the counts of each split and, last, of all."""
    counts: dict[str, dict[str, int]] = {split: _count([e for e in entries if e.split == split]) for split in SPLITS}
    return counts | {"all": _count(entries)}


def _count(entries: Sequence[Entry]) -> dict[str, int]:
    labels = Counter(entry.label for entry in entries)
    return {
        "images": len(entries),
        "patients": len({entry.patient for entry in entries}),
        **{label: labels[label] for label in LABEL_CODES},
        "masks": sum(entry.mask_row is not None for entry in entries),
    }


def _rows(counts: Mapping[str, int], reasons: Mapping[str, Reason] | None = None) -> list[Row]:
    """Return the lines of a table, the largest count first, each with a bar beside the largest."""
    top = max([*counts.values(), 1])
    known = reasons or {}
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return [Row(name, n, level_bar(n / top), *known.get(name, Reason(""))) for name, n in ordered]


def _flag_counts(shown: Sequence[Shown]) -> Mapping[str, int]:
    counts = Counter(flag for _, image, _ in shown for flag in image.flags)
    return {flag: counts[flag] for flag in (*FLAGS, *sorted(counts.keys() - FLAGS))}


def _flagged(journal: Journal, shown: Sequence[Shown], count: int) -> dict[str, list[Tile]]:
    groups = {flag: [each for each in shown if flag in each.image.flags] for flag in _flag_counts(shown)}
    return {flag: [_tile(journal, each) for each in spread(group, count)] for flag, group in groups.items() if group}


def _syntaxes(journal: Journal) -> Counter[str]:
    """Return counts by the name of the transfer syntax; a UID that has no public name is not shown."""
    counts: Counter[str] = Counter()
    for syntax, count in journal.counts("syntax").items():
        name = UID(syntax).name if syntax else "none: pictures, and files without a readable header"
        counts["private or unknown" if name == syntax else name] += count
    return counts


def _tile(journal: Journal, shown: Shown) -> Tile:
    image, entry = shown.image, shown.entry
    picture = pixels_of(journal, image).resize((TILE, TILE), Picture.Resampling.BICUBIC)
    if entry is None:
        return Tile(shown.name, _data_uri(picture), (image.reason, image.view), image.flags)
    if entry.mask_row is not None:
        picture = outlined(picture, _mask(journal, entry.mask_row))
    return Tile(
        shown.name, _data_uri(picture), (entry.view, _LABELS.get(entry.label, entry.label), entry.split), image.flags
    )


def _mask(journal: Journal, record: int) -> Picture.Image:
    data = np.frombuffer(journal.masks.read(record), np.uint8) * np.uint8(255)
    side = math.isqrt(data.size)
    return Picture.fromarray(data.reshape(side, side))


def outlined(picture: Picture.Image, mask: Picture.Image) -> Picture.Image:
    """Return a grey picture in colour with the outline of a mask (grey, 0 and 255) of any size drawn just inside it."""
    large = mask.resize(picture.size, Picture.Resampling.BILINEAR).point(lambda level: 255 if level > 127 else 0)  # noqa: PLR2004
    edge = ImageChops.subtract(large, large.filter(ImageFilter.MinFilter(3)))
    result = picture.convert("RGB")
    result.paste(TRUTH_COLOUR, mask=edge)
    return result


def _data_uri(picture: Picture.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _card(site: SiteFolder) -> tuple[str, str]:
    """Return the card that would leave, as JSON, and ""; or "" and the reason why there is none."""
    try:
        document = card_of(site, device=str(resolve_device("auto"))).model_dump(mode="json")
    except (SiteError, Refused) as error:
        return "", error.reason
    text = json.dumps(document, indent=2)
    return re.sub(r"\[\n[\d,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text), ""  # 1,024 numbers, one line


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": lambda count: f"{count:,}",
        "words": lambda code: code.replace("_", " "),
        "moment": lambda when: f"{when:%-d %B %Y, %H:%M} UTC",
    }
    return environment


_TEMPLATE = _environment().get_template("site.html.md")
