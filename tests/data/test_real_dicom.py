"""The real DICOM files of shared/data/dicom: their decisions, and pixels that must be equal or inverse."""

from functools import cache

import numpy as np
import pytest
from PIL import Image

from client.intake.examine import Examined, Item, Rules, examine
from multimix.data.decode import Preprocessing
from multimix.data.dicom import DicomError
from multimix.data.dicom_pixels import Fitted, fit_radiograph
from multimix.data.pseudonyms import Pseudonyms
from tests.conftest import REAL_DATA

pytestmark = pytest.mark.data

FOLDER = REAL_DATA / "dicom"
SECRET = b"secret of the test site, 32 byte"
BARE = "chest_cr_fuji_mono1_10bit_nopreamble.dcm"
ACCEPTED = {
    "chest_cr_fuji_mono1_10bit_explicitvr.dcm": "PA",
    BARE: "PA",
    "chest_cr_philips_mono1_15bit_j2k.dcm": "PA",
    "chest_cr_philips_mono1_15bit_jpegls_near.dcm": "PA",
    "chest_cr_rsna_mono2_8bit_jpegbaseline.dcm": "PA",
    "chest_cr_rsna_retagged_mono1.dcm": "PA",
}
TIBIA = tuple(f"nonchest/cr_tibia_mono1_10bit_{codec}.dcm" for codec in ("j2k_lossless", "jpegls_lossless", "rle"))
EXTENDED = ("nonchest/cr_hip_mono2_12bit_jpegextended.dcm", "nonchest/cr_tibia_mono1_12bit_jpegextended.dcm")
OTHERS = ("nonchest/cr_hip_mono2_10bit_jpeglossless.dcm", "nonchest/cr_teeth_mono1_10bit_jpegll_modalitylut.dcm")
DECISIONS = {
    **dict.fromkeys(ACCEPTED, ("accept", "")),
    "chest_dx_nih_mono2_8bit_implicitvr.dcm": ("review", "view_unknown"),
    **dict.fromkeys((*TIBIA, *EXTENDED, *OTHERS), ("aside", "other_body_part")),
}


@cache
def found(name: str, *, without_preamble: bool = True) -> Examined:
    rules = Rules(SECRET, Preprocessing(128), without_preamble=without_preamble)
    return examine(Item("key", "dicom", FOLDER / name), rules)


@cache
def fitted(name: str, size: int = 128) -> Fitted:
    """Pixels whatever the rules say of the body part."""
    data = (FOLDER / name).read_bytes()
    return fit_radiograph(data, Pseudonyms(SECRET), Preprocessing(size), without_preamble=True)


def test_every_file_of_the_folder_has_a_decision_here():
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.dcm")} == DECISIONS.keys()


@pytest.mark.parametrize("name", DECISIONS)
def test_the_decision_is_that_of_the_readme(name):
    assert (found(name).decision, found(name).reason) == DECISIONS[name]
    assert (found(name).pixels is None) == (DECISIONS[name][0] == "aside")


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_view_of_an_accepted_file_is_known(name):
    assert found(name).view == ACCEPTED[name]


def test_the_file_without_preamble_needs_its_option():
    assert found(BARE, without_preamble=False).reason == "no_preamble"


def test_both_fuji_files_are_one_image():
    first, second = (found(f"chest_cr_fuji_mono1_10bit_{kind}.dcm") for kind in ("explicitvr", "nopreamble"))
    assert np.array_equal(first.pixels, second.pixels)
    assert (first.content, first.geometry, first.keys) == (second.content, second.geometry, second.keys)
    assert first.syntax != second.syntax


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_retagged_rsna_file_is_the_exact_inverse_of_its_partner(size):
    plain, retagged = (
        fitted(f"chest_cr_rsna_{kind}.dcm", size) for kind in ("mono2_8bit_jpegbaseline", "retagged_mono1")
    )
    assert np.array_equal(retagged.pixels, 255 - plain.pixels)  # square: no padding to leave out
    assert plain.content != retagged.content
    pair = [found(f"chest_cr_rsna_{kind}.dcm") for kind in ("mono2_8bit_jpegbaseline", "retagged_mono1")]
    assert pair[0].keys.uid == pair[1].keys.uid
    assert "looks_inverted" in pair[1].flags


def test_the_tibia_is_one_image_under_three_lossless_codecs():
    first, *others = (fitted(name) for name in TIBIA)
    for other in others:
        assert np.array_equal(first.pixels, other.pixels)
        assert first.content == other.content


def test_the_philips_image_is_nearly_equal_under_two_lossy_codecs():
    j2k, jpegls = (fitted(f"chest_cr_philips_mono1_15bit_{kind}.dcm") for kind in ("j2k", "jpegls_near"))
    difference = np.abs(j2k.pixels.astype(int) - jpegls.pixels)
    assert difference.max() <= 2
    assert difference.mean() < 0.1  # the stored values differ by 50 of 25,600 in the mean: 0.5 of 255, unreduced
    assert j2k.content != jpegls.content


@pytest.mark.parametrize("name", EXTENDED)
def test_jpeg_extended_ends_in_a_reason_and_no_text_of_a_decoder(name):
    with pytest.raises(DicomError) as caught:
        fitted(name)
    assert caught.value.reason in {"pixels_undecodable", "syntax_unsupported"}
    assert str(caught.value) == caught.value.reason
    assert caught.value.__cause__ is None


def test_a_chest_is_as_bright_inside_as_its_polarity_says():
    """Air around a patient is black and the mediastinum bright once MONOCHROME1 is inverted."""
    for name in ACCEPTED.keys() - {"chest_cr_rsna_retagged_mono1.dcm"}:
        assert "looks_inverted" not in found(name).flags, name


@pytest.mark.parametrize("name", OTHERS)
def test_jpeg_lossless_is_decoded_where_gdcm_is_installed(name):
    pytest.importorskip("gdcm")
    assert len(np.unique(fitted(name).pixels)) > 200


def test_the_nih_file_holds_the_picture_that_pillow_would_scale():
    found_pixels = fitted("chest_dx_nih_mono2_8bit_implicitvr.dcm").pixels.astype(float)
    data = (FOLDER / "chest_dx_nih_mono2_8bit_implicitvr.dcm").read_bytes()
    stored = np.frombuffer(data[-1024 * 1024 :], np.uint8).reshape(1024, 1024)  # native pixels end the file
    small = np.asarray(Image.fromarray(stored).resize((128, 128), Image.Resampling.BILINEAR)).astype(float)
    low, high = np.percentile(small, (0.5, 99.5))
    assert np.abs(found_pixels - np.clip((small - low) / (high - low), 0, 1) * 255).max() < 2
