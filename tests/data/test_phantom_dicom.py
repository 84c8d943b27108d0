"""Phantom DICOM files: valid, exact, reproducible, and the same picture whatever the scanner's habits."""

import csv
import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from pydicom.pixels import apply_modality_lut

from multimix.data.manifest import MEDIASTINUM_EXCLUDED, read_manifest
from multimix.data.phantom import PhantomHospital, draw_phantom, write_phantoms
from multimix.data.phantom_dicom import (
    LABEL_COLUMNS,
    TRANSFER_SYNTAXES,
    PhantomDicom,
    dicom_bytes,
    phantom_dataset,
    phantom_uid,
    stored_pixels,
    write_phantom_dicoms,
)
from multimix.errors import InputError
from tests.dicom_seg import lung_segmentation

HOSPITAL = PhantomHospital(name="plain", image_aspect=0.8, prevalence=0.5)
CHEST = draw_phantom(HOSPITAL, patient=0, seed=0, image_size=45)
LOSSLESS = sorted(TRANSFER_SYNTAXES.keys() - {"jpeg_baseline"})
# Debian's dciodvfy cannot inflate; a deflated file holds the data set of explicit_le, see its own test.
VERIFIABLE = sorted(TRANSFER_SYNTAXES.keys() - {"deflated"})


def file_of(image, options: PhantomDicom, **given) -> bytes:
    dataset = phantom_dataset(image, patient_id="phantom-1", accession="A1", seed=3, options=options, **given)
    return dicom_bytes(dataset, preamble=options.preamble)


def read(data: bytes) -> pydicom.Dataset:
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    return dataset


def options_of(transfer_syntax: str, **given) -> PhantomDicom:
    bits = {"bits_stored": 8} if transfer_syntax == "jpeg_baseline" else {}
    return PhantomDicom(transfer_syntax=transfer_syntax, **bits | given)


@st.composite
def every_lossless_option(draw) -> PhantomDicom:
    modality = draw(st.sampled_from(["DX", "CR"]))
    return PhantomDicom(
        modality=modality,
        monochrome=draw(st.sampled_from([1, 2])),
        bits_stored=draw(st.integers(8, 16)),
        transfer_syntax=draw(st.sampled_from(LOSSLESS)),
        padding=draw(st.booleans()),
        modality_lut=draw(st.sampled_from(["none", "rescale", "lut"])) if modality == "CR" else "none",
    )


def noise(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


side = st.integers(32, 40)
images = st.builds(noise, st.tuples(side, side), st.integers(0, 2**32))


@settings(max_examples=60)
@given(image=images, options=every_lossless_option())
def test_lossless_files_decode_to_the_stored_pixels(image, options):
    assert np.array_equal(read(file_of(image, options)).pixel_array, stored_pixels(image, options))


@settings(max_examples=60)
@given(image=images, options=every_lossless_option())
def test_what_is_displayed_is_the_image_whatever_the_options(image, options):
    dataset = read(file_of(image, options))
    shown = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float64)
    top = 65535 if options.modality_lut == "lut" else 2**options.bits_stored - 1
    shown = top - shown if options.monochrome == 1 else shown
    if options.padding:
        inside = dataset.pixel_array != dataset.PixelPaddingValue
        assert shown[~inside].max() == 0
        assert inside.sum() == image.size
        shown = shown[inside].reshape(image.shape)
    step = top / (2**options.bits_stored - 1)
    darkest = step if options.padding else 0  # padding keeps the level below to itself
    expected = darkest + image / 255 * (top - darkest)
    assert np.abs(shown - expected).max() <= 0.5 * step + 1


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_levels_are_spread_over_the_bits_stored(bits):
    stored = stored_pixels(CHEST.image, PhantomDicom(bits_stored=bits))
    assert np.array_equal(stored, np.rint(CHEST.image / 255 * (2**bits - 1)))


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 16])
def test_monochrome1_is_the_exact_inverse(bits, padding):
    one, two = (
        read(file_of(CHEST.image, PhantomDicom(monochrome=kind, bits_stored=bits, padding=padding))) for kind in (1, 2)
    )
    assert one.PhotometricInterpretation == "MONOCHROME1"
    assert np.array_equal(one.pixel_array.astype(int) + two.pixel_array, np.full(one.pixel_array.shape, 2**bits - 1))


def test_jpeg_baseline_is_lossy_but_close_and_says_so():
    dataset = read(file_of(CHEST.image, options_of("jpeg_baseline")))
    error = np.abs(dataset.pixel_array.astype(int) - CHEST.image)
    assert 0 < error.mean() < 3
    assert dataset.LossyImageCompression == "01"


def test_a_deflated_file_holds_the_data_set_of_explicit_little_endian():
    assert read(file_of(CHEST.image, options_of("deflated"))) == read(file_of(CHEST.image, options_of("explicit_le")))


def test_without_preamble_the_file_is_the_bare_data_set():
    options = options_of("implicit_le")
    whole = file_of(CHEST.image, options)
    bare = file_of(CHEST.image, options.model_copy(update={"preamble": False}))
    assert whole[128:132] == b"DICM"
    assert whole.endswith(bare)
    assert bare[:4] == b"\x08\x00\x05\x00"  # (0008,0005), the first element
    with pytest.raises(pydicom.errors.InvalidDicomError):
        pydicom.dcmread(io.BytesIO(bare))


def test_burned_in_words_change_pixels_and_are_declared():
    plain, written = (read(file_of(CHEST.image, PhantomDicom(burned_in=yes))) for yes in (False, True))
    assert (plain.BurnedInAnnotation, written.BurnedInAnnotation) == ("NO", "YES")
    assert (written.pixel_array.astype(int) > plain.pixel_array).any()


@pytest.mark.parametrize("modality", ["DX", "CR"])
def test_every_file_says_that_it_is_synthetic(modality):
    dataset = read(file_of(CHEST.image, PhantomDicom(modality=modality)))
    assert dataset.Manufacturer == "multimix phantom"
    assert dataset.ImageComments == "synthetic phantom, not a patient"
    assert str(dataset.PatientName).startswith("PHANTOM^")
    assert dataset.QualityControlSubject == "YES"


@given(key=st.lists(st.one_of(st.integers(), st.text(max_size=9)), max_size=4))
def test_uids_are_well_formed_under_2_25_and_follow_from_the_key(key):
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", phantom_uid(*key))
    assert phantom_uid(*key) == phantom_uid(*key) != phantom_uid(*key, "more")


def test_the_sop_instance_uid_can_be_given_so_that_two_images_share_it():
    given = {"sop_instance_uid": phantom_uid("shared")}
    first, second = (read(file_of(CHEST.image, PhantomDicom(), number=n, **given)) for n in (1, 2))
    assert first.SOPInstanceUID == second.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.StudyInstanceUID == second.StudyInstanceUID


@pytest.mark.parametrize(
    "impossible",
    [
        {"modality": "DX", "modality_lut": "rescale"},
        {"transfer_syntax": "jpeg_baseline", "bits_stored": 12},
        {"preamble": False, "transfer_syntax": "explicit_le"},
    ],
)
def test_options_that_no_valid_file_can_have_are_refused(impossible):
    with pytest.raises(ValidationError):
        PhantomDicom(**impossible)


@pytest.mark.parametrize("image", [np.zeros((40, 40), np.uint16), np.zeros((40, 40, 3), np.uint8), noise((40, 31), 0)])
def test_an_image_of_another_type_or_shape_or_too_small_for_jpeg_2000_is_refused(image):
    with pytest.raises(InputError, match="give"):
        file_of(image, options_of("jpeg2000_lossless"))


def complaints(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=30)
    lines = (done.stdout + done.stderr).splitlines()
    assert {"DXImageForPresentation", "CRImage", "Segmentation"} & set(lines), "dciodvfy did not recognise the object"
    return [line for line in lines if "Error" in line or "Warning" in line]


OPTION_SETS = [
    *(options_of(syntax, modality=m) for syntax in VERIFIABLE for m in ("DX", "CR")),
    *(PhantomDicom(modality=m, view=v) for m in ("DX", "CR") for v in ("AP", "LL", "")),
    *(PhantomDicom(modality=m, body_part=b) for m in ("DX", "CR") for b in ("HAND", "ABDOMEN")),
    *(PhantomDicom(modality="CR", modality_lut=k, bits_stored=b) for k in ("rescale", "lut") for b in (8, 12, 16)),
    *(options_of(s, modality="CR", modality_lut="lut") for s in ("implicit_le", "explicit_be", "rle_lossless")),
    *(PhantomDicom(modality=m, monochrome=1, padding=True, burned_in=True) for m in ("DX", "CR")),
    *(options_of("implicit_le", modality=m, preamble=False) for m in ("DX", "CR")),
    *(PhantomDicom(bits_stored=b) for b in (8, 10, 16)),
    PhantomDicom(body_part=""),
]


def name_of(options: PhantomDicom) -> str:
    return "-".join(map(str, options.model_dump(exclude_defaults=True).values())) or "default"


@pytest.mark.dicom3tools
@pytest.mark.parametrize("options", OPTION_SETS, ids=name_of)
def test_dciodvfy_has_no_complaint(tmp_path, options):
    path = tmp_path / "phantom.dcm"
    path.write_bytes(file_of(CHEST.image, options))
    assert complaints(path) == []


@pytest.mark.dicom3tools
def test_dciodvfy_finds_what_is_wrong(tmp_path):
    dataset = phantom_dataset(CHEST.image, patient_id="p", accession="a", seed=0, options=PhantomDicom())
    del dataset.PresentationIntentType
    path = tmp_path / "broken.dcm"
    path.write_bytes(dicom_bytes(dataset))
    assert [line for line in complaints(path) if "Error" in line and "PresentationIntentType" in line]


def write(out: Path, **given) -> Path:
    defaults = {"patients": 3, "images_per_patient": 2, "image_size": 40, "seed": 5, "hospital": HOSPITAL}
    options = (PhantomDicom(modality="CR", padding=True, monochrome=1), *map(options_of, sorted(TRANSFER_SYNTAXES)))
    return write_phantom_dicoms(out, **{**defaults, "options": options, "with_masks": True, **given})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(labels: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(labels.open()))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write(tmp_path / name, seed=seed, patients=5)  # 10 images, so every transfer syntax
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    other = contents(tmp_path / "c")
    assert all(other[name] != data for name, data in contents(tmp_path / "a").items() if name.endswith(".dcm"))


def test_labels_name_every_file_and_masks_of_its_matrix_size(tmp_path):
    labels = write(tmp_path / "out")
    files = {f.SOPInstanceUID: f for f in map(pydicom.dcmread, (tmp_path / "out" / "DICOM").rglob("*.dcm"))}
    rows = rows_of(labels)
    assert tuple(rows[0]) == LABEL_COLUMNS
    assert len(rows) == len(files) == 3 * 2
    assert {row["sop_instance_uid"] for row in rows} == files.keys()
    for row in rows:
        mask = np.asarray(Image.open(labels.parent / row["mask"]))
        dataset = files[row["sop_instance_uid"]]
        assert mask.shape == (dataset.Rows, dataset.Columns) == dataset.pixel_array.shape
        assert set(np.unique(mask)) == {0, 255}


def test_a_mask_follows_its_image_into_the_padding(tmp_path):
    labels = write(tmp_path / "out", patients=1, images_per_patient=1, options=[PhantomDicom(padding=True)])
    mask = np.asarray(Image.open(labels.parent / rows_of(labels)[0]["mask"])) > 0
    dataset = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    drawn = draw_phantom(HOSPITAL, patient=0, seed=5, image_size=40).mask
    inside = dataset.pixel_array != dataset.PixelPaddingValue
    assert np.array_equal(mask[inside], drawn.ravel())
    assert mask.sum() == drawn.sum()


def test_labels_are_the_phantoms_and_equal_for_all_images_of_a_patient(tmp_path):
    labels = [row["label"] for row in rows_of(write(tmp_path / "out", patients=4))]
    drawn = [draw_phantom(HOSPITAL, patient=p, seed=5, image_size=40).pneumonia for p in range(4)]
    assert labels == [("pneumonia" if sick else "normal") for sick in drawn for _ in range(2)]
    assert set(labels) == {"normal", "pneumonia"}


def test_the_mask_convention_is_that_of_the_phantoms_manifest(tmp_path):
    manifest = read_manifest(write_phantoms(tmp_path / "png", hospitals=1, patients=1, image_size=32, seed=0))
    rows = rows_of(write(tmp_path / "out"))
    assert {row["mask_convention"] for row in rows} == {manifest[0].mask_convention} == {MEDIASTINUM_EXCLUDED}


def test_without_masks_none_is_named_and_none_is_written(tmp_path):
    rows = rows_of(write(tmp_path / "out", with_masks=False))
    assert {(row["mask"], row["mask_convention"]) for row in rows} == {("", "")}
    assert not list((tmp_path / "out").rglob("*.png"))


def test_images_of_a_patient_share_the_study_and_no_two_have_equal_pixels(tmp_path):
    write(tmp_path / "out", patients=2, images_per_patient=3, options=[PhantomDicom()])
    files = [pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert len({f.PixelData for f in files}) == 6
    assert len({f.SOPInstanceUID for f in files}) == 6
    assert len({(f.PatientID, f.StudyInstanceUID, f.AccessionNumber) for f in files}) == 2


def test_the_aspect_is_the_options_or_else_the_hospitals(tmp_path):
    write(tmp_path / "out", patients=2, images_per_patient=1, options=[PhantomDicom(), PhantomDicom(image_aspect=2)])
    sizes = [(f.Rows, f.Columns) for f in map(pydicom.dcmread, sorted((tmp_path / "out").rglob("*.dcm")))]
    assert sizes == [(40, 32), (20, 40)]  # width by height 0.8 and 2, the longer side 40


def test_a_folder_that_holds_anything_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write(tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("nothing", [{"patients": 0}, {"images_per_patient": 0}, {"options": ()}])
def test_nothing_to_write_is_refused(tmp_path, nothing):
    with pytest.raises(InputError, match="at least one"):
        write(tmp_path / "out", **nothing)


SEGMENTS = {"lung": ["39607008"], "left_right": ["44029006", "3341006"], "heart": ["80891009"]}


@pytest.mark.dicom3tools
@pytest.mark.parametrize("segments", SEGMENTS)
def test_a_segmentation_holds_the_mask_under_its_codes_and_refers_to_the_image(tmp_path, segments):
    dataset = phantom_dataset(CHEST.image, patient_id="p", accession="a", seed=0, options=PhantomDicom())
    lung_segmentation(dataset, CHEST.mask, segments=segments).save_as(tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    refers_to = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in seg.SegmentSequence] == SEGMENTS[segments]
    assert np.array_equal(seg.pixel_array.reshape(-1, *CHEST.mask.shape).sum(0), CHEST.mask)
    assert refers_to.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    assert complaints(tmp_path / "seg.dcm") == []


def test_the_left_lung_is_on_the_right_of_the_image():
    dataset = phantom_dataset(CHEST.image, patient_id="p", accession="a", seed=0, options=PhantomDicom())
    left, right = lung_segmentation(dataset, CHEST.mask, segments="left_right").pixel_array
    assert np.nonzero(left)[1].min() > np.nonzero(right)[1].max()
