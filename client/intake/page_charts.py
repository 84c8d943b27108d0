"""The histograms of `site.html`: grey levels, brightness, size, images of a patient."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from markupsafe import Markup

from client.intake.journal import Image, Journal
from client.intake.review import pixels_of
from multimix.bars import Bar, bar_chart

T = TypeVar("T")

SAMPLED_IMAGES: Final = 500  # at most, for the histogram of grey levels
SAMPLED_BYTES: Final = 128 << 20  # and no more of their pixels than this
MANY_IMAGES: Final = 10  # of a patient: the last bar of their histogram
SIDE_BARS: Final = 16  # at most
GREY_STEP: Final = 4
BRIGHTNESS_STEP: Final = 8
SIDE_STEP: Final = 256  # pixels; doubled until the bars suffice


@dataclass(frozen=True)
class Chart:
    """A drawn chart and its heading."""

    heading: str
    svg: Markup


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of the items, evenly spread from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places.tolist()]


def draw_charts(journal: Journal, images: Sequence[Image]) -> list[Chart]:
    """Draw the histograms of these images; pixels are read of a sample only. None where there is no image."""
    of_patients = Counter(Counter(image.patient for image in images).values())
    drawn = (
        ("Grey levels of all pixels", _grey_chart(journal, images)),
        ("Mean brightness of an image", _brightness_chart(images)),
        ("Longest side of the original", _side_chart(images)),
        ("Images of a patient", _patient_chart(of_patients)),
    )
    return [Chart(heading, svg) for heading, svg in drawn if svg]


def _grey_chart(journal: Journal, images: Sequence[Image]) -> Markup:
    """Draw how the grey levels are spread over a sample of images, the padding of the square left out."""
    affordable = max(1, SAMPLED_BYTES // journal.images.record_bytes)
    sample = spread(images, min(SAMPLED_IMAGES, affordable))
    counts = np.zeros(256, np.int64)
    for image in sample:
        counts += pixels_of(journal, image).crop(_content_box(image)).histogram()
    shares = 100 * counts.reshape(-1, GREY_STEP).sum(axis=1) / max(1, counts.sum())
    bars = [
        Bar(str(low), share, f"grey {low} to {low + GREY_STEP - 1}: {share:.2g} % of the pixels")
        for low, share in zip(range(0, 256, GREY_STEP), shares.tolist(), strict=True)
    ]
    label = f"Share of pixels by grey level, of {len(sample)} images"
    return bar_chart(bars, label=label, axis=f"grey level, 0 is black; {len(sample)} images", unit=" %", bounds=True)


def _content_box(image: Image) -> tuple[int, int, int, int]:
    width, height, scale_x, scale_y, left, top = image.geometry
    return left, top, left + round(width * scale_x), top + round(height * scale_y)


def _brightness_chart(images: Sequence[Image]) -> Markup:
    counts = Counter(image.brightness // BRIGHTNESS_STEP * BRIGHTNESS_STEP for image in images)
    bars = _steps(counts, range(0, 256, BRIGHTNESS_STEP), "mean grey level")
    return bar_chart(bars, label="Images by mean brightness", axis="mean grey level, padding included", bounds=True)


def _side_chart(images: Sequence[Image]) -> Markup:
    sides = [max(image.geometry.width, image.geometry.height) for image in images]
    step = SIDE_STEP
    while max(sides, default=0) // step >= SIDE_BARS:
        step *= 2
    lows = range(0, max(sides, default=0) + 1, step)
    bars = _steps(Counter(side // step * step for side in sides), lows, "longest side")
    return bar_chart(bars, label="Images by longest side", axis="longest side in pixels", bounds=True)


def _patient_chart(patients: Mapping[int, int]) -> Markup:
    counts: Counter[int] = Counter()
    for images, count in patients.items():
        counts[min(images, MANY_IMAGES)] += count
    names = {n: f"{n} or more" if n == MANY_IMAGES else str(n) for n in range(1, MANY_IMAGES + 1)}
    bars = [Bar(name.replace(" or more", "+"), counts[n], f"{name}: {counts[n]} patients") for n, name in names.items()]
    return bar_chart(bars, label="Patients by number of images", axis="images of a patient; bars count patients")


def _steps(counts: Mapping[int, int], lows: range, what: str) -> list[Bar]:
    tip = "{} {} to {}: {} images"
    return [Bar(str(n), counts.get(n, 0), tip.format(what, n, n + lows.step - 1, counts.get(n, 0))) for n in lows]
