import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFont

from multimix.data.decode import Preprocessing, geometry_of, read_image, square
from multimix.data.manifest import read_manifest
from multimix.data.phantom import PhantomHospital, draw_phantom
from multimix.data.quality import assess
from multimix.errors import InputError

TURNS = (1, 2, 3)
PHANTOMS = [("none", 1.0), ("R", 0.8), ("L", 1.2), ("dot", 1.0)]


def phantom(*, marker="none", aspect=1.0, size=128, patient=0):
    hospital = PhantomHospital(name="quality", marker=marker, image_aspect=aspect)
    return draw_phantom(hospital, patient=patient, seed=1, image_size=size).image


def fitted(content, size):
    """Put the content in the middle of a black square, as intake does, and assess it."""
    height, width = content.shape
    left, top = (size - width) // 2, (size - height) // 2
    image = np.zeros((size, size), np.uint8)
    image[top : top + height, left : left + width] = content
    return assess(image, left=left, top=top, width=width, height=height)


def looked_at(content):
    return fitted(content, max(content.shape))


def with_text(content, *, lines, font_size=10, seed=0):
    """Burn lines of random letters into the middle third of the width: saturated, like a workstation's overlay."""
    rng = np.random.default_rng(seed)
    font = ImageFont.load_default(font_size)
    letters = max(5, round(content.shape[1] / 3 / (0.55 * font_size)))
    text = "\n".join("".join(rng.choice(list("ABCDEFGHKLMNPRSTUVXYZ0123456789"), letters)) for _ in range(lines))
    picture = Image.fromarray(content)
    place = (content.shape[1] * 0.1, content.shape[0] * 0.25)
    ImageDraw.Draw(picture).multiline_text(place, text, fill=255, font=font)
    return np.asarray(picture)


@pytest.mark.parametrize("size", [64, 128, 256, 512])
@pytest.mark.parametrize(("marker", "aspect"), PHANTOMS)
def test_a_normal_film_with_a_side_marker_raises_no_flag(marker, aspect, size):
    assert looked_at(phantom(marker=marker, aspect=aspect, size=size)).flags == ()


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize(("marker", "aspect"), PHANTOMS)
def test_an_inverted_film_looks_inverted(marker, aspect, size):
    found = looked_at(255 - phantom(marker=marker, aspect=aspect, size=size))
    assert (found.flags, found.rotation_degrees) == (("looks_inverted",), 0)


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize(("marker", "aspect"), PHANTOMS)
def test_a_turned_film_looks_rotated_by_its_counter_clockwise_angle(marker, aspect, turns):
    found = looked_at(np.rot90(phantom(marker=marker, aspect=aspect), turns))
    assert (found.flags, found.rotation_degrees) == (("looks_rotated",), 90 * turns)


@pytest.mark.parametrize("turns", TURNS)
def test_a_film_can_be_inverted_and_turned_at_once(turns):
    found = looked_at(np.rot90(255 - phantom(), turns))
    assert (found.flags, found.rotation_degrees) == (("looks_inverted", "looks_rotated"), 90 * turns)


def test_a_mirrored_film_is_not_called_rotated():
    assert looked_at(phantom()[:, ::-1]).flags == ()


def test_wide_black_borders_inside_the_content_do_not_disturb():
    film = phantom(size=128)
    canvas = np.zeros((128, 200), np.uint8)
    canvas[:, 60:188] = film
    assert [looked_at(np.rot90(canvas, turns)).rotation_degrees for turns in range(4)] == [0, 90, 180, 270]


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_several_lines_of_burned_in_text_are_text_heavy(size):
    film = phantom(size=size)
    assert looked_at(with_text(film, lines=4, font_size=10 if size < 512 else 20)).flags == ("text_heavy",)


def test_text_is_found_on_an_inverted_film_too():
    assert looked_at(255 - with_text(phantom(size=256), lines=5)).flags == ("looks_inverted", "text_heavy")


def test_text_far_above_the_side_markers_share_is_reported_as_more():
    film = phantom(size=256)
    shares = [looked_at(with_text(film, lines=lines)).text_share for lines in (1, 3, 6)]
    assert looked_at(film).text_share < shares[0] < shares[1] < shares[2]


def test_a_film_with_more_than_four_fifths_near_zero_is_mostly_black_and_has_no_orientation():
    film = np.clip(phantom(), 11, 255)  # no pixel of its own near zero (10 or less)
    film[:102] = 5  # 102 of 128 rows are 79.7 %
    assert "mostly_black" not in looked_at(film).flags
    film[102] = 5  # 103 are 80.5 %
    assert looked_at(film).flags == ("mostly_black",)
    assert looked_at(film).black_share == 103 / 128


def test_a_flat_film_is_mostly_black_even_when_it_is_grey():
    ramp = np.tile(np.arange(128, dtype=np.uint8) // 8 + 100, (128, 1))  # 16 levels, 1/16 of the pixels each
    flat = np.minimum(ramp, 114)
    assert (looked_at(ramp).levels, looked_at(flat).levels) == (16, 15)
    assert ("mostly_black" in looked_at(ramp).flags, looked_at(flat).flags) == (False, ("mostly_black",))


def test_padding_around_the_content_does_not_count():
    film = phantom(size=64)
    assert fitted(film, 512).mean == round(float(film.mean()))
    assert "mostly_black" not in fitted(film, 512).flags


@pytest.mark.parametrize(
    ("image", "box", "reason"),
    [
        (np.zeros((64, 65), np.uint8), (0, 0, 64, 64), "image_not_square_grey8"),
        (np.zeros((64, 64), np.uint16), (0, 0, 64, 64), "image_not_square_grey8"),
        (np.zeros((64, 64), np.uint8), (1, 0, 64, 64), "content_outside_image"),
        (np.zeros((64, 64), np.uint8), (0, -1, 64, 64), "content_outside_image"),
        (np.zeros((64, 64), np.uint8), (0, 0, 0, 64), "content_outside_image"),
    ],
)
def test_what_is_no_fitted_image_is_refused(image, box, reason):
    left, top, width, height = box
    with pytest.raises(InputError) as refused:
        assess(image, left=left, top=top, width=width, height=height)
    assert refused.value.reason == reason


@st.composite
def fitted_images(draw):
    size = draw(st.sampled_from([64, 65, 100, 128, 200, 512]))
    short = draw(st.integers(1, size))
    width, height = draw(st.sampled_from([(size, short), (short, size)]))
    # A tile repeated: hypothesis cannot fill 512 x 512 in time, but it shrinks a tile well.
    tile = draw(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
    noise = np.random.default_rng(draw(st.integers(0, 9))).integers(0, draw(st.integers(1, 256)), (size, size))
    repeats = (-(-size // tile.shape[0]), -(-size // tile.shape[1]))
    image = (np.tile(tile, repeats)[:size, :size] + noise).astype(np.uint8)
    return image, {
        "left": (size - width) // 2,
        "top": (size - height) // 2,
        "width": width,
        "height": height,
    }


@given(fitted_images())
def test_any_pixels_are_assessed_twice_alike_and_left_as_they_are(drawn):
    image, box = drawn
    before = image.copy()
    found = assess(image, **box)
    assert found == assess(image, **box)
    assert np.array_equal(image, before)
    assert ("looks_rotated" in found.flags) == (found.rotation_degrees in {90, 180, 270})
    assert 0 <= found.text_share <= 1
    assert 0 <= found.black_share <= 1
    assert 1 <= found.levels <= 256


def test_importing_quality_needs_no_torch():
    code = "import multimix.data.quality, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.data
def test_rates_on_real_radiographs(real_data):
    """40 images of each source: at most one false flag of a kind in each, and nearly every fault found."""
    root, preprocessing, sample = real_data / "cxr", Preprocessing(image_size=128), 40
    sources = defaultdict(list)
    for record in read_manifest(root / "manifest.csv"):
        sources[record.source].append(record)
    falsely, faults, images = Counter(), Counter(), 0
    for source, records in sources.items():
        for record in records[:: len(records) // sample][:sample]:
            grey = read_image(record, root=root)
            geometry = geometry_of(preprocessing, width=grey.shape[1], height=grey.shape[0])
            width, height = round(geometry.width * geometry.scale_x), round(geometry.height * geometry.scale_y)
            box = np.s_[geometry.offset_y : geometry.offset_y + height, geometry.offset_x : geometry.offset_x + width]
            film = square(grey, geometry, 128)[box]
            images += 1
            flags = looked_at(film).flags
            falsely[source, "orientation"] += "looks_inverted" in flags or "looks_rotated" in flags
            falsely[source, "text"] += "text_heavy" in flags
            falsely[source, "black"] += "mostly_black" in flags
            faults["inverted"] += "looks_inverted" in looked_at(255 - film).flags
            faults["text"] += "text_heavy" in looked_at(with_text(film, lines=4, seed=images)).flags
            for turns in TURNS:
                faults[90 * turns] += looked_at(np.rot90(film, turns)).rotation_degrees == 90 * turns
    assert images == 6 * sample
    assert {what: count for what, count in falsely.items() if count > 1} == {}
    least = {"inverted": 0.95, 90: 0.9, 180: 0.9, 270: 0.9, "text": 0.9}
    assert {fault: faults[fault] / images for fault in least if faults[fault] < least[fault] * images} == {}
