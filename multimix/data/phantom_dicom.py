"""Phantoms as DICOM radiographs, so that intake, PACS and decoders are rehearsed without a patient's file.

Each object is a valid DX (For Presentation) or CR image around a phantom of `multimix.data.phantom` and says in
its manufacturer, its comment and its patient's name that it is synthetic. One option is one thing that hospitals
do differently: bits, MONOCHROME1, modality LUT, padding, transfer syntax, missing view or preamble. Whatever the
options, the displayed image is the same phantom; a reader that skips a step sees it inverted or framed.

Attributes: DICOM PS3.3 2024 A.26 (DX), A.2 (CR), C.7.6.3, C.8.11, C.11.1; checked with dciodvfy.
"""

import csv
import io
import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydicom import uid as uids
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from multimix.data.manifest import MEDIASTINUM_EXCLUDED
from multimix.data.phantom import GOLDEN_STEP, Phantom, PhantomHospital, default_hospitals, draw_phantom
from multimix.errors import InputError
from multimix.randomness import Key, derive_seed

UInt8 = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.unsignedinteger[Any]]
View = Literal["PA", "AP", "LL", ""]
BodyPart = Literal["CHEST", "ABDOMEN", "HAND", ""]
Native = Literal["explicit_le", "implicit_le", "explicit_be", "deflated"]
Compressed = Literal["jpeg_baseline", "jpeg2000_lossless", "jpegls_lossless", "rle_lossless"]

TRANSFER_SYNTAXES: Final = {
    "explicit_le": uids.ExplicitVRLittleEndian,
    "implicit_le": uids.ImplicitVRLittleEndian,
    "explicit_be": uids.ExplicitVRBigEndian,
    "deflated": uids.DeflatedExplicitVRLittleEndian,
    "jpeg_baseline": uids.JPEGBaseline8Bit,
    "jpeg2000_lossless": uids.JPEG2000Lossless,
    "jpegls_lossless": uids.JPEGLSLossless,
    "rle_lossless": uids.RLELossless,
}
# One named encoder each, so that the bytes do not depend on which others are installed.
ENCODERS: Final = {"jpeg2000_lossless": "pylibjpeg", "jpegls_lossless": "pyjpegls", "rle_lossless": "pylibjpeg"}
SOP_CLASSES: Final = {"DX": "1.2.840.10008.5.1.4.1.1.1.1", "CR": "1.2.840.10008.5.1.4.1.1.1"}
LABEL_COLUMNS: Final = ("sop_instance_uid", "label", "mask", "mask_convention")
PADDING_SHARES: Final = ((0.06, 0.12), (0.1, 0.04))
"""Border above, below, left and right as a share of the phantom's height and width: no two sides alike."""

SMALLEST_JPEG2000: Final = 32  # OpenJPEG halves the image five times
BODY_PART_CODES: Final = {
    "CHEST": ("51185008", "Chest"),
    "ABDOMEN": ("818981001", "Abdomen"),
    "HAND": ("85562004", "Hand"),
}
VIEW_CODES: Final = {
    "PA": ("272479007", "postero-anterior"),
    "AP": ("399348003", "antero-posterior"),
    "LL": ("399173006", "left lateral"),
    "": ("261665006", "Unknown"),  # the DX module asks for a code even where nobody recorded the view
}


class PhantomDicom(BaseModel):
    """How one scanner and archive write a radiograph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Literal["DX", "CR"] = "DX"
    monochrome: Literal[1, 2] = 2
    """1 stores the inverse: the lowest value is displayed white."""
    bits_stored: Annotated[int, Field(ge=8, le=16)] = 12
    transfer_syntax: Native | Compressed = "explicit_le"
    view: View = "PA"
    """What the header says, like `body_part`; the picture is a frontal chest. Empty: nobody recorded it."""
    body_part: BodyPart = "CHEST"
    padding: bool = False
    """Frame the phantom in a value (PixelPaddingValue, displayed black) that no pixel of it has."""
    modality_lut: Literal["none", "rescale", "lut"] = "none"
    """Of CR. Both kinds descend, so that a reader that skips them shows the negative; a LUT has 16 bits out."""
    burned_in: bool = False
    """Write words into the pixels and say so."""
    image_aspect: Annotated[float, Field(ge=0.5, le=2)] | None = None
    """Width by height of what `write_phantom_dicoms` draws; None leaves it to the hospital."""
    preamble: bool = True
    """False: a bare data set without preamble and file meta information, as old archives export."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.modality == "DX" and self.modality_lut != "none":
            raise ValueError("a DX image has the identity for its rescale and no modality LUT; take CR")
        if self.transfer_syntax == "jpeg_baseline" and self.bits_stored != 8:  # noqa: PLR2004
            raise ValueError("JPEG baseline holds 8 bits; give bits_stored=8")
        if not self.preamble and self.transfer_syntax != "implicit_le":
            raise ValueError("without file meta information only implicit_le, the default of DICOM, can be read")
        return self


def phantom_uid(*key: Key) -> str:
    """Return the UID of a key, under 2.25 (a name-based UUID, PS3.5 B.2): equal keys give equal UIDs."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(['multimix phantom', *key])).int}"


def frame(image: npt.NDArray[np.generic], value: int) -> npt.NDArray[np.generic]:
    """Return the array, [height, width], inside the border that `padding` adds, of the given value."""
    sides = zip(PADDING_SHARES, image.shape, strict=True)
    border = [(max(1, round(before * side)), max(1, round(after * side))) for (before, after), side in sides]
    return np.pad(image, border, constant_values=value)


def stored_pixels(image: UInt8, options: PhantomDicom) -> Stored:
    """Return what PixelData holds for an image, uint8 [height, width] with 0 displayed black.

    The 256 levels are spread over 0 to 2**bits_stored - 1 (from 1 with padding, which keeps 0 to itself). Uint8
    for 8 bits, else uint16; with padding the array is larger.
    """
    top = 2**options.bits_stored - 1
    lowest = int(options.padding)
    levels: npt.NDArray[np.generic] = lowest + (image.astype(np.int64) * (top - lowest) + 127) // 255
    if options.padding:
        levels = frame(levels, 0)
    stored: Stored = levels.astype(np.uint8 if options.bits_stored == 8 else np.uint16)  # noqa: PLR2004
    return top - stored if (options.monochrome == 1) != (options.modality_lut != "none") else stored


def phantom_dataset(
    image: UInt8,
    *,
    patient_id: str,
    accession: str,
    seed: int,
    options: PhantomDicom,
    number: int = 1,
    patient_name: str = "PHANTOM^A",
    sop_instance_uid: str = "",
) -> Dataset:
    """Return the DICOM object, encoded, of one image, uint8 [height, width] with 0 displayed black.

    A study is a (seed, patient, accession); each `number` in it is a series of one image. An empty
    `sop_instance_uid` is derived as well. The result is a pure function of the arguments.

    Raises:
        InputError: the image is not an uint8 matrix, or for JPEG 2000 a side is below 32 pixels.
    """
    if image.dtype != np.uint8 or image.ndim != 2:  # noqa: PLR2004
        raise InputError("phantom_image", f"Phantom image of {image.dtype} {image.shape}; give uint8 [height, width].")
    if options.transfer_syntax == "jpeg2000_lossless" and min(image.shape) < SMALLEST_JPEG2000:
        raise InputError("phantom_image", f"JPEG 2000 phantom of {image.shape} pixels; give sides of 32 or more.")
    dataset = Dataset()
    dataset.SOPClassUID = SOP_CLASSES[options.modality]
    _identify(dataset, (seed, patient_id, accession), number, sop_instance_uid)
    dataset.PatientID, dataset.PatientName, dataset.AccessionNumber = patient_id, patient_name, accession
    _describe(dataset, options)
    (_describe_digital if options.modality == "DX" else _describe_computed)(dataset, options)
    _encode(dataset, stored_pixels(_inscribed(image) if options.burned_in else image, options), options)
    return dataset


def _inscribed(image: UInt8) -> UInt8:
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).text((2, 2), "PHANTOM\nNOT A PATIENT", fill=255, font_size=max(6, image.shape[0] // 16))
    return np.asarray(picture)


def _identify(dataset: Dataset, study: tuple[Key, ...], number: int, sop_instance_uid: str) -> None:
    """Fill the UIDs, numbers and times of study, series, image and file."""
    dataset.StudyInstanceUID = phantom_uid("study", *study)
    dataset.SeriesInstanceUID = phantom_uid("series", *study, number)
    dataset.SOPInstanceUID = sop_instance_uid or phantom_uid("image", *study, number)
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "PHANTOM", number, 1
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20000101"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "120000"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.ImplementationClassUID = uids.UID(phantom_uid("implementation"))
    dataset.file_meta.ImplementationVersionName = "MULTIMIXPHANTOM"


def _describe(dataset: Dataset, options: PhantomDicom) -> None:
    """Fill what DX and CR share: patient, equipment, image pixel, VOI."""
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = ""
    dataset.QualityControlSubject = "YES"  # the standard's word for "a phantom, not a patient"
    dataset.Manufacturer = "multimix phantom"
    dataset.ManufacturerModelName = "synthetic, not a patient"
    dataset.InstitutionName = "Phantom hospital"
    dataset.DeviceSerialNumber = dataset.SoftwareVersions = "1"
    dataset.StudyDescription = dataset.ImageComments = "synthetic phantom, not a patient"
    dataset.Modality = options.modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.BurnedInAnnotation = "YES" if options.burned_in else "NO"
    dataset.BodyPartExamined, dataset.ViewPosition = options.body_part, options.view
    dataset.PatientOrientation = ["P", "F"] if options.view == "LL" else ["L", "F"]
    dataset.PresentationLUTShape = "INVERSE" if options.monochrome == 1 else "IDENTITY"
    dataset.LossyImageCompression = "00"
    levels = 2**16 if options.modality_lut == "lut" else 2**options.bits_stored
    dataset.WindowCenter, dataset.WindowWidth = levels // 2, levels


def _describe_digital(dataset: Dataset, options: PhantomDicom) -> None:
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1 if options.monochrome == 1 else -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.ImageLaterality = "R" if options.body_part == "HAND" else "U"
    dataset.DetectorType, dataset.PositionerType = "DIRECT", "NONE"
    dataset.AcquisitionContextSequence = []
    region = BODY_PART_CODES.get(options.body_part)
    dataset.AnatomicRegionSequence = [_code(*region)] if region else []
    dataset.ViewCodeSequence = [_code(*VIEW_CODES[options.view])]


def _describe_computed(dataset: Dataset, options: PhantomDicom) -> None:
    top = 2**options.bits_stored - 1
    if options.body_part in {"HAND", ""}:  # not permitted where the body part is known to be unpaired
        dataset.Laterality = "R" if options.body_part else ""
    if options.modality_lut == "rescale":
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = top, -1, "US"
    if options.modality_lut == "lut":
        table = Dataset()
        table.add_new("LUTDescriptor", "US", [(top + 1) % 2**16, 0, 16])  # 0 stands for 65536 entries
        table.ModalityLUTType = "US"
        order = ">u2" if options.transfer_syntax == "explicit_be" else "<u2"
        descending = np.arange(top, -1, -1) * 65535 // top
        table.add_new("LUTData", "OW", descending.astype(order).tobytes())
        dataset.ModalityLUTSequence = [table]


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _encode(dataset: Dataset, stored: Stored, options: PhantomDicom) -> None:
    """Put the pixels into the dataset in the transfer syntax of the options."""
    dataset.SamplesPerPixel, dataset.PixelRepresentation, dataset.BitsAllocated = 1, 0, 8 * stored.itemsize
    dataset.BitsStored, dataset.HighBit = options.bits_stored, options.bits_stored - 1
    dataset.PhotometricInterpretation = f"MONOCHROME{options.monochrome}"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.ImagerPixelSpacing = [round(400 / max(stored.shape), 6)] * 2  # a film 400 mm long
    if options.padding:
        dataset.add_new("PixelPaddingValue", "US", int(stored[0, 0]))
    syntax = TRANSFER_SYNTAXES[options.transfer_syntax]
    encoder = ENCODERS.get(options.transfer_syntax)
    # Dataset.compress starts from native pixels.
    dataset.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian if encoder else syntax
    data = (stored.byteswap() if options.transfer_syntax == "explicit_be" else stored).tobytes()
    dataset.add_new("PixelData", "OB" if stored.itemsize == 1 else "OW", data + b"\0" * (len(data) % 2))
    if encoder:
        dataset.compress(syntax, encoding_plugin=encoder, generate_instance_uid=False)
    if options.transfer_syntax == "jpeg_baseline":
        file = io.BytesIO()
        Image.fromarray(stored).save(file, "JPEG", quality=95)
        dataset.PixelData = encapsulate([file.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
        dataset.LossyImageCompressionRatio = round(len(data) / len(file.getvalue()), 2)


def dicom_bytes(dataset: Dataset, *, preamble: bool = True) -> bytes:
    """Return the file of a dataset; `preamble=False` leaves out preamble and file meta information."""
    file = io.BytesIO()
    if preamble:
        dataset.save_as(file, enforce_file_format=True)
    else:
        Dataset(dataset).save_as(file, implicit_vr=True, little_endian=True)
    return file.getvalue()


def write_phantom_dicoms(
    out: Path,
    *,
    patients: int,
    image_size: int,
    seed: int,
    images_per_patient: int = 1,
    hospital: PhantomHospital | None = None,
    options: Sequence[PhantomDicom] = (PhantomDicom(),),
    with_masks: bool = False,
) -> Path:
    """Write out/DICOM/<patient>/<series>/IM000001.dcm, masks and labels.csv; return the path of labels.csv.

    Images take the options in turn. Further images of a patient are other exposures of the same chest. Masks are
    PNGs of 0 and 255 at the matrix size of their image, named relative to `out`. No hospital: the first default
    one. `image_size` is the longer side in pixels, padding apart. The folder appears whole or not at all.

    Raises:
        InputError: a count is out of range, there are no options, or `out` is there and not empty.
    """
    if patients < 1 or images_per_patient < 1 or not options:
        raise InputError("phantom_counts", "Give at least one patient, one image per patient and one set of options.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("phantom_folder", "The folder for the phantoms exists and is not empty. Give a new one.")
    hospital = hospital or default_hospitals(1, seed)[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        partial = Path(scratch) / "phantoms"
        rows = []
        for turn in range(patients * images_per_patient):
            patient, image = divmod(turn, images_per_patient)
            chosen = options[turn % len(options)]
            exposure = 0.6 + (hospital.exposure + image * GOLDEN_STEP) % 1.2 if image else hospital.exposure
            changes = {"exposure": exposure, "image_aspect": chosen.image_aspect or hospital.image_aspect}
            film = hospital.model_copy(update=changes)
            phantom = draw_phantom(film, patient=patient, seed=seed, image_size=image_size)
            row = _write_image(partial, hospital.name, phantom, patient, image, seed=seed, options=chosen)
            rows.append(row + (_write_mask(partial, phantom, patient, image, chosen) if with_masks else ("", "")))
        with (partial / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows([LABEL_COLUMNS, *rows])
        partial.rename(out)
    return out / "labels.csv"


def _write_image(
    folder: Path, hospital: str, phantom: Phantom, patient: int, image: int, *, seed: int, options: PhantomDicom
) -> tuple[str, ...]:
    """Write one DICOM file; return its SOP instance UID and its label."""
    dataset = phantom_dataset(
        phantom.image,
        patient_id=f"{hospital}-{patient:05d}",
        accession=f"PH{derive_seed(seed, hospital) % 10**8:08d}{patient:06d}",
        seed=seed,
        options=options,
        number=image + 1,
        patient_name=f"PHANTOM^{patient:05d}",
    )
    path = folder / "DICOM" / f"PAT{patient:05d}" / f"SER{image + 1:05d}" / "IM000001.dcm"
    path.parent.mkdir(parents=True)
    path.write_bytes(dicom_bytes(dataset, preamble=options.preamble))
    return (str(dataset.SOPInstanceUID), "pneumonia" if phantom.pneumonia else "normal")


def _write_mask(folder: Path, phantom: Phantom, patient: int, image: int, options: PhantomDicom) -> tuple[str, ...]:
    """Write one mask as PNG; return its path from the folder and its convention."""
    name = f"masks/{patient:05d}-{image + 1:05d}.png"
    lung = frame(phantom.mask, 0) if options.padding else phantom.mask
    (folder / "masks").mkdir(exist_ok=True)
    Image.fromarray(lung.astype(np.uint8) * np.uint8(255)).save(folder / name)
    return (name, MEDIASTINUM_EXCLUDED)
