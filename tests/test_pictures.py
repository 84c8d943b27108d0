import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multimix.pictures import PREDICTION_COLOUR, TRUTH_COLOUR, overlay_strip, png_bytes

GREY = np.full((24, 20), 90, np.uint8)
SQUARE = np.zeros((24, 20), bool)
SQUARE[6:18, 5:15] = True


def _rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


def _where(strip, colour):
    return (np.asarray(strip) == _rgb(colour)).all(axis=2)


def _panels(strip, count, width):
    pixels = np.asarray(strip)
    gap = (pixels.shape[1] - count * width) // max(count - 1, 1)
    return [pixels[:, i * (width + gap) : i * (width + gap) + width] for i in range(count)]


def test_three_panels_stand_side_by_side_at_the_asked_scale():
    strip = overlay_strip(GREY, prediction=SQUARE, truth=SQUARE, saliency=np.ones((24, 20)), scale=3)
    assert strip.height == 24 * 3
    assert strip.width >= 3 * 20 * 3
    assert strip.mode == "RGB"


def test_a_panel_without_content_is_left_out():
    assert overlay_strip(GREY, prediction=None, truth=None, saliency=None, scale=1).size == (20, 24)


def test_both_outlines_stay_visible_where_the_masks_agree():
    strip = overlay_strip(GREY, prediction=SQUARE, truth=SQUARE, saliency=None)
    assert _where(strip, PREDICTION_COLOUR).any()
    assert _where(strip, TRUTH_COLOUR).any()


def test_the_prediction_is_outlined_inside_its_mask_and_the_truth_outside():
    strip = overlay_strip(GREY, prediction=SQUARE, truth=SQUARE, saliency=None, scale=1)
    outlined = Image.fromarray(_panels(strip, 2, 20)[1])
    assert not (_where(outlined, PREDICTION_COLOUR) & ~SQUARE).any()
    assert not (_where(outlined, TRUTH_COLOUR) & SQUARE).any()
    assert not _where(outlined, PREDICTION_COLOUR)[12, 10]  # the middle stays clear


def test_the_plain_image_is_unchanged_beside_its_overlay():
    strip = overlay_strip(GREY, prediction=SQUARE, truth=None, saliency=np.ones((24, 20)), scale=1)
    assert (_panels(strip, 3, 20)[0] == 90).all()


def test_saliency_of_zero_leaves_the_image_as_it_is():
    strip = overlay_strip(GREY, prediction=None, truth=None, saliency=np.zeros((24, 20)), scale=1)
    assert (_panels(strip, 2, 20)[1] == 90).all()


def test_the_most_salient_place_is_the_most_changed():
    saliency = np.zeros((24, 20))
    saliency[12, 10] = 7.0
    strip = overlay_strip(GREY, prediction=None, truth=None, saliency=saliency, scale=1)
    change = np.abs(_panels(strip, 2, 20)[1].astype(int) - 90).sum(axis=2)
    assert np.unravel_index(change.argmax(), change.shape) == (12, 10)


@given(factor=st.floats(1e-6, 1e6))
def test_the_unit_of_saliency_does_not_matter(factor):
    saliency = np.outer(np.linspace(0, 1, 24), np.linspace(0, 1, 20))
    strips = [
        overlay_strip(GREY, prediction=None, truth=None, saliency=s, scale=1) for s in (saliency, factor * saliency)
    ]
    assert np.abs(np.asarray(strips[0]).astype(int) - np.asarray(strips[1])).max() <= 1


def test_saliency_that_is_not_finite_counts_as_zero():
    saliency = np.full((24, 20), np.nan)
    strip = overlay_strip(GREY, prediction=None, truth=None, saliency=saliency, scale=1)
    assert (_panels(strip, 2, 20)[1] == 90).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": GREY.astype(np.float32)}, "uint8"),
        ({"prediction": SQUARE[:-1]}, "prediction is"),
        ({"truth": SQUARE.astype(np.uint8)}, "truth must be bool"),
        ({"saliency": np.zeros((2, 2))}, "saliency is"),
        ({"scale": 0}, "scale"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, said):
    given_ = {"image": GREY, "prediction": SQUARE, "truth": SQUARE, "saliency": None, "scale": 2} | change
    with pytest.raises(ValueError, match=said):
        overlay_strip(given_.pop("image"), **given_)


def test_a_png_holds_the_same_pixels():
    strip = overlay_strip(GREY, prediction=SQUARE, truth=None, saliency=None)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(strip)))), np.asarray(strip))
