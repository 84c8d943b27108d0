"""From stored values to grey pixels: the same picture whatever the scanner's habits, and lies found out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from client.intake.examine import Item, Rules, examine
from multimix.data.decode import Preprocessing, square_lung, unfit
from multimix.data.dicom import DicomError
from multimix.data.dicom_pixels import Fitted, fit_radiograph, true_values
from multimix.data.phantom import PhantomHospital, draw_phantom
from multimix.data.phantom_dicom import TRANSFER_SYNTAXES, PhantomDicom, dicom_bytes, phantom_dataset
from multimix.data.pseudonyms import Pseudonyms

PSEUDONYMS = Pseudonyms(b"secret of the test site, 32 byte")
CHEST = draw_phantom(
    PhantomHospital(name="h", image_aspect=0.8, prevalence=0.5), patient=0, seed=0, image_size=90
).image
LOSSLESS = sorted(TRANSFER_SYNTAXES.keys() - {"jpeg_baseline"})
ENCAPSULATED = ("jpeg_baseline", "jpeg2000_lossless", "jpegls_lossless", "rle_lossless")


def phantom(image=CHEST, **options) -> Dataset:
    if options.get("transfer_syntax") == "jpeg_baseline":
        options["bits_stored"] = 8
    return phantom_dataset(image, patient_id="p", accession="a", seed=0, options=PhantomDicom(**options))


def fit(dataset: Dataset | bytes, size: int = 64) -> Fitted:
    data = dataset if isinstance(dataset, bytes) else dicom_bytes(dataset)
    return fit_radiograph(data, PSEUDONYMS, Preprocessing(size), without_preamble=False)


def reason(dataset: Dataset | bytes) -> str:
    with pytest.raises(DicomError) as caught:
        fit(dataset)
    return caught.value.reason


def raw(values: np.ndarray, **attributes) -> Dataset:
    """A radiograph with these stored values [rows, columns], 12 bits unless said otherwise."""
    dataset = phantom(bits_stored=12)
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    data = values.tobytes()
    dataset.add_new("PixelData", "OB" if values.dtype.itemsize == 1 else "OW", data + b"\0" * (len(data) % 2))
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def ramp(low: int, high: int, dtype: type = np.uint16) -> np.ndarray:
    """64 x 64 values from low, on the left, to high, on the right."""
    return np.tile(np.linspace(low, high, 64).round().astype(dtype), (64, 1))


def rises(pixels: np.ndarray) -> bool:
    row = pixels[32].astype(int)
    return bool((np.diff(row) >= 0).all() and row[0] == 0 and row[-1] == 255)


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_lossless_syntax_gives_equal_pixels_and_an_equal_content_hash(name):
    fitted, plain = fit(phantom(transfer_syntax=name)), fit(phantom())
    assert np.array_equal(fitted.pixels, plain.pixels)
    assert (fitted.content, fitted.geometry, fitted.flags) == (plain.content, plain.geometry, ())


def test_jpeg_baseline_gives_nearly_the_pixels_and_another_hash():
    fitted, plain = fit(phantom(transfer_syntax="jpeg_baseline")), fit(phantom(bits_stored=8))
    assert np.abs(fitted.pixels.astype(int) - plain.pixels).mean() < 2
    assert fitted.content != plain.content


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("padding", [False, True])
def test_monochrome1_is_inverted_once_and_shows_the_picture_of_monochrome2(bits, padding):
    one, two = (fit(phantom(monochrome=kind, bits_stored=bits, padding=padding)) for kind in (1, 2))
    assert np.abs(one.pixels.astype(int) - two.pixels).max() <= 1
    assert one.content != two.content


def test_retagged_as_monochrome1_the_picture_is_the_exact_inverse():
    dataset = phantom()
    dataset.PhotometricInterpretation = "MONOCHROME1"
    inverse, plain = fit(dataset), fit(phantom())
    left, width = plain.geometry.offset_x, round(plain.geometry.width * plain.geometry.scale_x)
    inside = np.s_[:, left : left + width]
    assert np.array_equal(inverse.pixels[inside], 255 - plain.pixels[inside])
    assert np.array_equal(np.delete(inverse.pixels, range(left, left + width), axis=1), np.zeros((64, 64 - width)))


@pytest.mark.parametrize("kind", ["rescale", "lut"])
@pytest.mark.parametrize("monochrome", [1, 2])
def test_a_descending_modality_lut_or_slope_is_undone(kind, monochrome):
    changed = fit(phantom(modality="CR", modality_lut=kind, monochrome=monochrome))
    plain = fit(phantom(modality="CR", monochrome=monochrome))
    assert np.abs(changed.pixels.astype(int) - plain.pixels).max() <= 1


@pytest.mark.parametrize("slope", ["1", "1.0", "4", "0.25"])
def test_a_positive_slope_and_any_intercept_change_neither_picture_nor_hash(slope):
    plain = fit(raw(ramp(0, 4095)))
    scaled = fit(raw(ramp(0, 4095), RescaleSlope=slope, RescaleIntercept="-1024"))
    assert np.array_equal(scaled.pixels, plain.pixels)
    assert scaled.content == plain.content


def test_a_lut_in_words_and_one_in_bytes_are_one_image():
    words = phantom(modality="CR", modality_lut="lut")
    table = words.ModalityLUTSequence[0]
    table.add_new("LUTData", "US", list(np.frombuffer(table.LUTData, "<u2").tolist()))
    big_endian = phantom(modality="CR", modality_lut="lut", transfer_syntax="explicit_be")
    assert len({fit(each).content for each in (words, big_endian, phantom(modality="CR", modality_lut="lut"))}) == 1


def test_two_luts_make_two_images():
    other = phantom(modality="CR", modality_lut="lut")
    table = other.ModalityLUTSequence[0]
    table.add_new("LUTData", "US", (np.frombuffer(table.LUTData, "<u2") // 2).tolist())
    assert fit(other).content != fit(phantom(modality="CR", modality_lut="lut")).content


def test_eight_bits_hash_alike_in_eight_and_in_sixteen_allocated_bits():
    narrow, wide = (fit(raw(ramp(0, 255, kind), BitsStored=8, HighBit=7)) for kind in (np.uint8, np.uint16))
    assert narrow.content == wide.content


@pytest.mark.parametrize("monochrome", [1, 2])
def test_padding_is_black_and_does_not_move_the_grey_scale(monochrome):
    inner = ramp(1000, 2000)
    framed = np.pad(inner, 64, constant_values=4095)
    fitted = fit(raw(framed, PixelPaddingValue=4095, PhotometricInterpretation=f"MONOCHROME{monochrome}"), size=192)
    alone = fit(raw(inner, PhotometricInterpretation=f"MONOCHROME{monochrome}"))
    assert np.array_equal(fitted.pixels[65:127, 65:127], alone.pixels[1:63, 1:63])
    outside = np.ones((192, 192), bool)
    outside[64:128, 64:128] = False
    assert fitted.pixels[outside].max() == 0


def test_a_range_of_padding_is_left_out():
    values = np.hstack([ramp(1000, 2000), np.full((64, 32), 4000, np.uint16), np.full((64, 32), 4090, np.uint16)])
    fitted = fit(raw(values, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095), size=128)
    assert rises(fitted.pixels[32:96, :64])
    assert fitted.pixels[:, 65:].max() == 0


@pytest.mark.parametrize(
    ("values", "vr", "written"), [(ramp(0, 2000), "SS", -16), (ramp(-500, 2000, np.int16), "US", 65536 - 2000)]
)
def test_padding_written_with_the_wrong_sign_is_found(values, vr, written):
    values = np.hstack([values, np.full((64, 64), np.int64(written)).astype(values.dtype)])
    dataset = raw(values, BitsStored=16, HighBit=15)
    dataset.add_new("PixelPaddingValue", vr, written)
    fitted = fit(dataset, size=128)
    assert rises(fitted.pixels[32:96, :64])
    assert fitted.pixels[:, 65:].max() == 0


def test_a_padding_value_that_no_pixel_can_have_hides_nothing():
    dataset = raw(ramp(0, 255, np.uint8), BitsStored=8, HighBit=7)
    dataset.add_new("PixelPaddingValue", "US", 256)  # the lowest byte is black
    assert np.array_equal(fit(dataset).pixels, fit(raw(ramp(0, 255, np.uint8), BitsStored=8, HighBit=7)).pixels)


def test_more_bits_than_promised_are_kept_and_flagged():
    lying = fit(raw(ramp(0, 4095), BitsStored=10, HighBit=9))
    assert lying.flags == ("bits_stored_wrong",)
    assert rises(lying.pixels)


@pytest.mark.parametrize("low", [-3000, 0])
def test_more_signed_bits_than_promised_are_kept_and_flagged(low):
    lying = fit(raw(ramp(low, 3000, np.int16), BitsStored=10, HighBit=9))
    assert lying.flags == ("bits_stored_wrong",)
    assert rises(lying.pixels)


@pytest.mark.parametrize("bits", [0, 17])
def test_bits_that_cannot_be_give_no_picture(bits):
    assert reason(raw(ramp(0, 4095), BitsStored=bits, HighBit=11)) == "pixels_undecodable"


def test_a_sign_that_was_not_extended_is_extended():
    signed = ramp(-2048, 2047, np.int16)
    fitted = fit(raw((signed.view(np.uint16) & 4095).view(np.int16)))
    assert fitted.flags == ()
    assert np.array_equal(fitted.pixels, fit(raw(signed)).pixels)


@pytest.mark.parametrize("signed", [False, True])
def test_overlays_in_the_unused_bits_are_masked(signed):
    values = ramp(-2048, 2047, np.int16) if signed else ramp(0, 4095)
    drawn = values.view(np.uint16) & 4095
    drawn[10:30, 10:30] |= 1 << 12
    dataset = raw(drawn.view(values.dtype))
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 12)
    fitted = fit(dataset)
    assert fitted.flags == ()
    assert np.array_equal(fitted.pixels, fit(raw(values)).pixels)


def test_an_overlay_excuses_its_own_bit_only():
    dataset = raw(ramp(0, 4095), BitsStored=10, HighBit=9)
    dataset.add_new(0x60000102, "US", 15)
    lying = fit(dataset)
    assert lying.flags == ("bits_stored_wrong",)
    assert rises(lying.pixels)


@pytest.mark.parametrize("junk", [0, 0b1011])
def test_values_in_the_high_bits_are_shifted_down(junk):
    values = ramp(0, 4095)
    shifted = fit(raw((values << 4) | np.uint16(junk), BitsStored=12, HighBit=15))
    plain = fit(raw(values))
    assert (shifted.flags, shifted.content) == ((), plain.content)
    assert np.array_equal(shifted.pixels, plain.pixels)


@given(
    bits=st.integers(1, 16),
    shift=st.integers(0, 15),
    signed=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_what_bits_stored_means_is_read_back_for_every_width_shift_and_sign(bits, shift, signed, seed):
    shift = min(shift, 16 - bits)
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    meant = np.random.default_rng(seed).integers(low, high, (4, 5))
    stored = ((meant & ((1 << bits) - 1)) << shift).astype(np.uint16).view(np.int16 if signed else np.uint16)
    header = Dataset()
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, bits, bits + shift - 1
    header.PixelRepresentation = int(signed)
    values, flags = true_values(stored, header)
    assert np.array_equal(values, meant)
    assert flags == ()


def test_a_few_outliers_do_not_move_the_grey_scale():
    values = ramp(1000, 2000)
    spoilt = values.copy()
    spoilt[0, 40:50] = 4095  # 10 of 4,096 pixels: fewer than 0.5 per cent
    spoilt[1, 40:50] = 0
    difference = np.abs(fit(raw(spoilt)).pixels[2:].astype(int) - fit(raw(values)).pixels[2:])
    assert difference.max() <= 4  # 10 pixels are a quarter of a column, 1 / 256 of the scale


@pytest.mark.parametrize("value", [0, 7, 4095])
def test_a_flat_image_is_named_so(value):
    assert reason(raw(np.full((64, 64), value, np.uint16))) == "pixels_flat"


def test_an_image_flat_but_for_outliers_is_flat():
    values = np.full((100, 100), 7, np.uint16)
    values[0, :20] = 4095
    assert reason(raw(values)) == "pixels_flat"


@pytest.mark.parametrize("islands", [0, 1])
def test_nothing_but_padding_is_flat(islands):
    values = np.zeros((96, 96), np.uint16)
    values[50, 50] = 7 * islands
    assert reason(raw(values, PixelPaddingValue=0)) == "pixels_flat"


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (64, 96), (65, 130)])
def test_the_aspect_is_kept_and_the_rest_is_black(rows, columns):
    fitted = fit(raw(np.tile(np.linspace(1, 4095, columns).astype(np.uint16), (rows, 1))[::, ::-1].copy()))
    used = (fitted.pixels > 0).any(axis=1).sum(), (fitted.pixels > 0).any(axis=0).sum()
    height, width = (round(64 * side / max(rows, columns)) for side in (rows, columns))
    assert used[0] == height
    assert width - 1 <= used[1] <= width  # the darkest column is black too


@settings(max_examples=60)
@given(
    rows=st.integers(64, 300),
    columns=st.integers(64, 300),
    box=st.tuples(*[st.floats(0.05, 0.6)] * 2),
    pad=st.booleans(),
)
def test_a_mask_fitted_and_mapped_back_is_within_a_pixel_of_the_square(rows, columns, box, pad):
    size = 64
    geometry = fit(raw(np.random.default_rng(0).integers(0, 4096, (rows, columns)).astype(np.uint16)), size).geometry
    top, left = round(box[0] * rows), round(box[1] * columns)
    mask = np.zeros((rows, columns), bool)
    mask[top : top + rows // 3, left : left + columns // 3] = True
    back = unfit(square_lung(mask, geometry, size) * np.uint8(255), geometry) >= 128
    assert back.shape == mask.shape
    step = max(rows, columns) / size  # original pixels for one of the square
    for axis in (0, 1):
        ends, ends_back = (np.flatnonzero(each.any(axis=axis))[[0, -1]] for each in (mask, back))
        assert np.abs(ends - ends_back).max() <= step + 1


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("missing", [20, 200, 3000])
def test_a_truncated_file_gives_no_half_picture(name, missing):
    assert reason(dicom_bytes(phantom(transfer_syntax=name))[:-missing]) in {"pixels_undecodable", "header_unreadable"}


@pytest.mark.parametrize("name", ENCAPSULATED)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_a_truncated_codestream_in_a_whole_file_gives_no_half_picture(name, share):
    dataset = phantom(transfer_syntax=name)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[: int(share * len(frame))]])
    dataset["PixelData"].is_undefined_length = True
    assert reason(dataset) == "pixels_undecodable"


@pytest.mark.parametrize("name", ["explicit_le", *ENCAPSULATED])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (4000, 4000), (90, 71)])
def test_a_matrix_that_the_pixels_do_not_have_gives_no_picture(name, rows, columns):
    dataset = phantom(transfer_syntax=name)
    dataset.Rows, dataset.Columns = rows, columns
    fewer_native = name == "explicit_le" and rows * columns < CHEST.size
    if fewer_native:
        assert fit(dataset).geometry[:2] == (columns, rows)  # a native file may be longer than its matrix
    else:
        states_its_size = name not in {"explicit_le", "rle_lossless"}
        assert reason(dataset) == ("matrix_wrong" if states_its_size else "pixels_undecodable")


def test_a_lying_matrix_is_refused_before_anything_is_decoded():
    dataset = phantom()
    dataset.Rows = dataset.Columns = 60_000
    del dataset.PixelData  # decoding would end in another reason
    rules = Rules(b"secret", Preprocessing(64), maximum_pixels=10**6)
    found = examine(Item("key", "dicom", dicom_bytes(dataset)), rules)
    assert (found.decision, found.reason, found.pixels) == ("aside", "too_many_pixels", None)


def test_a_syntax_without_a_decoder_is_named_so():
    dataset = phantom()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    dataset.PixelData = encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True
    assert reason(dataset) == "syntax_unsupported"


def test_another_secret_gives_another_content_hash():
    data = dicom_bytes(phantom())
    other = fit_radiograph(data, Pseudonyms(b"another"), Preprocessing(64), without_preamble=False)
    assert other.content != fit(data).content
