"""The review queue: images that a person has to look at, under short names, on a contact sheet."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw

from client.intake.journal import Image, Journal
from multimix.errors import SiteError
from multimix.files import write_atomically

TILE: Final = 192
CAPTION: Final = 16
COLUMNS: Final = 6
ON_A_SHEET: Final = 120


@dataclass(frozen=True)
class Queue:
    """The images that wait, in the order they came; with those accepted where they may be named too."""

    images: tuple[Image, ...]

    @classmethod
    def of(cls, journal: Journal, *, accepted: bool = False) -> "Queue":
        """Return what waits now."""
        return cls(tuple(journal.kept_images("review", *(("accept",) if accepted else ()))))

    def named(self) -> list[tuple[str, Image]]:
        """Return the images with names that last as long as the image waits."""
        return [(f"{'r' if image.decision == 'review' else 'a'}{image.id}", image) for image in self.images]

    def draw(self, journal: Journal, path: Path) -> Path | None:
        """Draw the first 120 on a contact sheet that only this user can read; remove it when nothing waits."""
        if not self.images:
            path.unlink(missing_ok=True)
            return None
        tiles = [(name, pixels_of(journal, image)) for name, image in self.named()[:ON_A_SHEET]]
        buffer = io.BytesIO()
        contact_sheet(tiles).save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
        return path


def pixels_of(journal: Journal, image: Image) -> Picture.Image:
    """Return the kept pixels of an image."""
    data = np.frombuffer(journal.images.read(image.record), np.uint8)
    side = math.isqrt(data.size)
    return Picture.fromarray(data.reshape(side, side))


def contact_sheet(tiles: Sequence[tuple[str, Picture.Image]]) -> Picture.Image:
    """Return pictures in rows, each with its name below."""
    columns = min(COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = Picture.new("L", (columns * TILE, rows * (TILE + CAPTION)), 255)
    draw = ImageDraw.Draw(sheet)
    for number, (name, picture) in enumerate(tiles):
        left, top = number % columns * TILE, number // columns * (TILE + CAPTION)
        sheet.paste(picture.resize((TILE - 4, TILE - 4)), (left + 2, top + 2))
        draw.text((left + 4, top + TILE), name, fill=0)
    return sheet


def resolve_ids(queue: Queue, names: Sequence[str], *, everything: bool) -> list[Image]:
    """Return the images of these names.

    Raises:
        SiteError: `review_what` if nothing or both is named, `review_unknown` if a name does not wait.
    """
    if everything == bool(names):
        raise SiteError("review_what", "Name images as `multimix-site review` lists them, or say --all.")
    by_name = dict(queue.named())
    if everything:
        return [image for image in queue.images if image.decision == "review"]
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SiteError("review_unknown", f"{len(unknown)} of the names do not wait for review. List them again.")
    return [by_name[name] for name in dict.fromkeys(names)]
