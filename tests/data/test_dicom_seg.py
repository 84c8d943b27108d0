"""Lung masks from DICOM SEG written by highdicom: what is a lung, of which image, and what is refused."""

import copy

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from client.intake.examine import Item, Rules, examine
from multimix.data.decode import Preprocessing
from multimix.data.dicom import DicomError, uid_key
from multimix.data.dicom_seg import LUNG_CODES, lung_of
from multimix.data.phantom_dicom import PhantomDicom, dicom_bytes, phantom_dataset
from multimix.data.pseudonyms import Pseudonyms
from tests.dicom_seg import lung_segmentation

PSEUDONYMS = Pseudonyms(b"secret of the test site, 32 byte")
IMAGE = phantom_dataset(
    np.arange(80 * 64, dtype=np.uint32).reshape(80, 64).astype(np.uint8),
    patient_id="p",
    accession="a",
    seed=0,
    options=PhantomDicom(),
)
MASK = np.zeros((80, 64), bool)
MASK[20:60, 8:28] = MASK[24:56, 36:58] = True


def seg(segments="lung", mask=MASK, image=IMAGE) -> Dataset:
    return lung_segmentation(image, mask, segments=segments)


def found(dataset: Dataset, maximum_pixels: int = 10**6):
    return lung_of(dicom_bytes(dataset), PSEUDONYMS, maximum_pixels=maximum_pixels)


def reason(dataset: Dataset, **given) -> str:
    with pytest.raises(DicomError) as caught:
        found(dataset, **given)
    assert caught.value.__cause__ is None
    return caught.value.reason


@pytest.mark.parametrize("segments", ["lung", "left_right"])
def test_the_mask_is_the_union_of_the_lungs_and_names_its_image(segments):
    image_uid, mask = found(seg(segments))
    assert np.array_equal(mask, MASK)
    assert image_uid == uid_key(PSEUDONYMS, IMAGE.SOPInstanceUID)


def test_one_lung_alone_is_a_mask():
    left = MASK & (np.arange(64) >= 32)  # the patient's left is on the right of the image
    assert np.array_equal(found(seg("left_right", left)).mask, left)


def test_a_heart_alone_is_no_lung():
    assert reason(seg("heart")) == "seg_no_lung"


def test_a_heart_beside_the_lungs_is_left_out():
    dataset = seg("left_right")
    heart = Code("80891009", "SCT", "Heart")
    dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = [hd.sr.CodedConcept.from_code(heart)]
    right = MASK & (np.arange(64) < 32)
    assert np.array_equal(found(dataset).mask, right)


@pytest.mark.parametrize("code", sorted(LUNG_CODES))
def test_every_code_of_a_lung_is_known(code):
    dataset = seg()
    dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = code
    assert found(dataset).mask.any()


def test_a_segmentation_of_several_images_is_refused():
    dataset = seg("left_right")
    frame = dataset.PerFrameFunctionalGroupsSequence[1]
    frame.DerivationImageSequence = copy.deepcopy(frame.DerivationImageSequence)  # both frames share one
    frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "2.25.4711"
    assert reason(dataset) == "seg_many_images"


def test_without_a_source_in_the_frames_the_referenced_series_names_the_image():
    dataset = seg()
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    assert found(dataset).image_uid == uid_key(PSEUDONYMS, IMAGE.SOPInstanceUID)


def test_a_segmentation_of_no_image_is_refused():
    dataset = seg()
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    del dataset.ReferencedSeriesSequence
    assert reason(dataset) == "seg_many_images"


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP", ""])
def test_what_is_not_binary_is_refused(kind):
    dataset = seg()
    dataset.SegmentationType = kind
    assert reason(dataset) == "seg_not_binary"


def test_a_radiograph_is_no_segmentation():
    assert reason(IMAGE) == "seg_not_binary"


def test_a_mask_without_a_pixel_is_named_so():
    dataset = seg()
    dataset.PixelData = bytes(len(dataset.PixelData))
    assert reason(dataset) == "mask_empty"


@pytest.mark.parametrize(("frames", "limit"), [(1, 80 * 64 - 1), (2, 2 * 80 * 64 - 1)])
def test_too_many_pixels_over_all_frames_are_refused_before_decoding(frames, limit):
    dataset = seg("lung" if frames == 1 else "left_right")
    assert found(dataset, limit + 1).mask.any()
    del dataset.PixelData
    assert reason(dataset, maximum_pixels=limit) == "too_many_pixels"


@pytest.mark.parametrize(
    ("name", "value"), [("NumberOfFrames", -1), ("NumberOfFrames", 7), ("Rows", 0), ("BitsAllocated", 16)]
)
def test_a_lying_header_gives_no_mask(name, value):
    dataset = seg()
    setattr(dataset, name, value)
    assert reason(dataset) == "seg_unreadable"


@pytest.mark.parametrize("missing", ["SegmentSequence", "PerFrameFunctionalGroupsSequence", "Rows", "PixelData"])
def test_a_segmentation_without_what_it_needs_is_unreadable(missing):
    dataset = seg()
    del dataset[missing]
    assert reason(dataset) == "seg_unreadable"


def test_truncated_pixels_give_no_mask():
    dataset = seg()
    dataset.PixelData = dataset.PixelData[:100]
    assert reason(dataset) == "seg_unreadable"


def test_a_worker_fits_the_mask_as_its_image():
    size = 40
    mask = examine(Item("k", "dicom", dicom_bytes(seg("left_right"))), Rules(b"secret", Preprocessing(size)))
    image = examine(Item("k", "dicom", dicom_bytes(IMAGE)), Rules(b"secret", Preprocessing(size)))
    assert (mask.kind, mask.decision, mask.modality) == ("mask", "accept", "SEG")
    assert (mask.geometry, mask.keys.uid, mask.keys.patient) == (image.geometry, image.keys.uid, image.keys.patient)
    half = MASK.reshape(40, 2, 32, 2).mean(axis=(1, 3))  # 80 x 64 to 40 x 32
    inside = mask.pixels[:, 4:36]
    assert np.array_equal(inside[(half == 0) | (half == 1)], half[(half == 0) | (half == 1)])
    assert mask.pixels[:, :4].max() == mask.pixels[:, 36:].max() == 0
