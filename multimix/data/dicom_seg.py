"""Lung masks from DICOM SEG: the union of the lung segments of one radiograph (PS3.3 A.51, C.8.20)."""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from multimix.data.dicom import TECHNICAL, DicomError, codes, quiet, read, syntax_of, text, uid_key
from multimix.data.pseudonyms import Pseudonyms
from multimix.data.radiographs import SEGMENTATION

SEGMENTATION_ELEMENTS: Final = (
    *TECHNICAL,
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "SegmentationType",
    "SegmentSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ReferencedSeriesSequence",
)
LUNG_CODES: Final = frozenset({"39607008", "3341006", "44029006", "T-28000", "T-28100", "T-28500"})


class Segmentation(NamedTuple):
    """A lung mask [height, width] of the image whose UID has this pseudonym."""

    image_uid: str
    mask: npt.NDArray[np.bool_]


def lung_of(data: bytes, pseudonyms: Pseudonyms, *, maximum_pixels: int) -> Segmentation:
    """Return the union of the lung segments of a binary DICOM SEG of one radiograph (PS3.3 A.51).

    Raises:
        DicomError: `seg_unreadable`, `seg_not_binary`, `seg_no_lung`, `seg_many_images`, `too_many_pixels`,
            `mask_empty`.
    """
    dataset = read(data, SEGMENTATION_ELEMENTS, without_preamble=False, pixels=True)
    try:
        with quiet():
            return _lung(dataset, pseudonyms, maximum_pixels)
    except (DicomError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001  (a panic in a decoder written in Rust is no Exception)
        raise DicomError("seg_unreadable") from None


def _lung(dataset: Dataset, pseudonyms: Pseudonyms, maximum_pixels: int) -> Segmentation:
    if text(dataset, "SOPClassUID") != SEGMENTATION or text(dataset, "SegmentationType") != "BINARY":
        raise DicomError("seg_not_binary")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames * int(dataset.Rows) * int(dataset.Columns) > maximum_pixels:
        raise DicomError("too_many_pixels")
    lungs = {
        int(item.SegmentNumber)
        for item in dataset.SegmentSequence
        if LUNG_CODES.intersection(codes(item, "SegmentedPropertyTypeCodeSequence"))
    }
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    chosen = [
        index
        for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence)
        if _segment(group if "SegmentIdentificationSequence" in group else shared) in lungs
    ]
    if not chosen:
        raise DicomError("seg_no_lung")
    images = {uid for index in chosen for uid in _sources(dataset, dataset.PerFrameFunctionalGroupsSequence[index])}
    if len(images) != 1:
        raise DicomError("seg_many_images")
    array, _ = get_decoder(UID(syntax_of(dataset))).as_array(dataset, raw=True)
    planes = np.asarray(array).reshape(frames, int(dataset.Rows), int(dataset.Columns))
    mask = np.asarray(planes[chosen].any(axis=0), np.bool_)
    if not mask.any():
        raise DicomError("mask_empty")
    return Segmentation(uid_key(pseudonyms, images.pop()), mask)


def _segment(group: Dataset) -> int:
    return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _sources(dataset: Dataset, group: Dataset) -> set[str]:
    """Return the UIDs of the images that a frame was drawn on: of the frame, of all frames or of the series."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for holder in (group, shared[0]):
        found = {
            str(source.ReferencedSOPInstanceUID)
            for derivation in holder.get("DerivationImageSequence") or ()
            for source in derivation.get("SourceImageSequence") or ()
        }
        if found:
            return found
    return {
        str(instance.ReferencedSOPInstanceUID)
        for series in dataset.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedInstanceSequence") or ()
    }
