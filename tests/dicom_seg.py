"""DICOM SEG of a lung mask as a segmentation tool would send it, made by highdicom and not by our own code."""

from typing import Literal

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.coding import Code

from multimix.data.phantom_dicom import phantom_uid

ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
LUNG = Code("39607008", "SCT", "Lung")
LEFT_LUNG = Code("44029006", "SCT", "Left lung")
RIGHT_LUNG = Code("3341006", "SCT", "Right lung")
HEART = Code("80891009", "SCT", "Heart")


def lung_segmentation(
    dataset: Dataset, mask: npt.NDArray[np.bool_], *, segments: Literal["lung", "left_right", "heart"]
) -> Dataset:
    """Return a BINARY SEG over the image `dataset`; the mask is bool [rows, columns] of its matrix.

    "lung" and "heart" put the mask into one segment of that code. "left_right" cuts it at the middle column into two
    segments: the patient's left is on the right of the image. An empty half gives a segment without a frame.
    """
    codes = {"lung": (LUNG,), "heart": (HEART,), "left_right": (LEFT_LUNG, RIGHT_LUNG)}[segments]
    on_the_right = np.broadcast_to(np.arange(mask.shape[1]) >= mask.shape[1] // 2, mask.shape)
    planes = (mask & on_the_right, mask & ~on_the_right) if segments == "left_right" else (mask,)
    uid = str(dataset.SOPInstanceUID)
    segmentation = hd.seg.Segmentation(
        source_images=[dataset],
        pixel_array=np.stack(planes, axis=-1)[np.newaxis],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number, code) for number, code in enumerate(codes, start=1)],
        series_instance_uid=phantom_uid("segmentation series", uid, segments),
        series_number=100,
        sop_instance_uid=phantom_uid("segmentation", uid, segments),
        instance_number=1,
        manufacturer="multimix phantom",
        manufacturer_model_name="synthetic, not a patient",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
    )
    segmentation.PatientOrientation = dataset.get("PatientOrientation")  # highdicom leaves it out; dciodvfy asks for it
    return segmentation


def _description(number: int, code: Code) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=code.meaning,
        segmented_property_category=ANATOMY,
        segmented_property_type=code,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
