"""Every reason code of intake in plain words: what it means, and what can be done.

The command line, the local pages and docs/site-data.md print from this one table.
"""

from typing import Final, NamedTuple


class Reason(NamedTuple):
    """What a code means and what a person can do, "" if nothing is wrong."""

    meaning: str
    remedy: str = ""


CHANGED: Final = {
    "corrected": Reason("a picture met before, now of another patient, view or path in the manifest"),
}
REVIEW: Final = {
    "view_unknown": Reason("chest radiograph, or likely one, without a view", "look: multimix-site review"),
    "view_contradicted": Reason("a frontal view that other fields call lateral", "look: multimix-site review"),
    "body_part_unknown": Reason("frontal radiograph of an unnamed body part", "look: multimix-site review"),
}
ASIDE: Final = {
    "other_body_part": Reason("another part of the body"),
    "lateral_view": Reason("lateral chest radiograph"),
    "other_view": Reason("oblique or other view"),
    "other_modality": Reason("not a CR or DX image"),
    "for_processing": Reason("raw detector image, not for presentation", "send the image for presentation"),
    "multi_frame": Reason("several frames"),
    "burned_in_annotation": Reason("the header says that text is burned into the pixels"),
    "not_grey": Reason("colour, or neither MONOCHROME1 nor MONOCHROME2"),
    "too_many_pixels": Reason("rows x columns beyond the cap", "raise intake.maximum_pixels if it is a real image"),
    "too_few_pixels": Reason("a side below 64 pixels"),
    "duplicate_uid": Reason("the same image again: equal SOP instance UID and pixels"),
    "duplicate_uid_conflict": Reason("a SOP instance UID that is taken, with other pixels", "ask who sent both"),
    "duplicate_pixels": Reason("the same pixels again, under another UID of the patient"),
    "duplicate_pixels_other_patient": Reason("the very pixels of another patient", "find out whose image it is"),
    "duplicate_mask": Reason("the same mask again"),
    "mask_conflict": Reason("a second, different mask of one image", "keep one and purge or leave out the other"),
    "rejected": Reason("rejected by a person"),
    "patient_purged": Reason("of a patient who was purged"),
    "not_dicom": Reason("not a DICOM file"),
    "no_preamble": Reason("DICOM without its preamble", "take it in with --without-preamble"),
    "header_unreadable": Reason("damaged header", "export the file again"),
    "no_sop_instance_uid": Reason("no SOP instance UID", "export the file again"),
    "file_empty": Reason("empty file"),
    "file_too_large": Reason("larger than intake.maximum_bytes"),
    "syntax_unsupported": Reason("no decoder for its transfer syntax", "pip install 'multimix[gdcm]', then check"),
    "pixels_undecodable": Reason("damaged pixels", "export the file again, better uncompressed"),
    "matrix_wrong": Reason("rows and columns of the header are not those of the pixels", "export the file again"),
    "pixels_not_square": Reason("pixels that are not square", "ask the PACS for square pixels"),
    "pixels_flat": Reason("no picture: one grey level or padding alone"),
    "image_unreadable": Reason("damaged PNG or JPEG"),
    "image_too_large": Reason("PNG or JPEG with too many pixels"),
    "mask_not_binary": Reason("mask with more than lung and background", "save it with two values"),
    "mask_empty": Reason("mask without lung, or too little to be left"),
    "seg_unreadable": Reason("damaged DICOM SEG"),
    "seg_not_binary": Reason("DICOM SEG that is not binary"),
    "seg_no_lung": Reason("DICOM SEG without a segment coded as lung"),
    "seg_many_images": Reason("DICOM SEG of several images, or of none"),
    "time_limit": Reason("decoding took longer than intake.seconds_per_file", "export it uncompressed"),
    "memory_limit": Reason("decoding asked for more than intake.memory_mib", "export it uncompressed"),
    "decoder_crashed": Reason("the decoder crashed on it", "export it uncompressed"),
    "examination_failed": Reason("our mistake: an error we did not foresee", "report the reason code"),
}
TRANSIENT: Final = {
    "file_unreadable": Reason("the file could not be opened", "check its permissions; it is tried again"),
    "retrieval_failed": Reason("the PACS did not give it", "it is tried again at the next intake"),
}
JOIN: Final = {
    "labels_without_image": Reason("keys in labels files that met no image", "check identifiers and issuer"),
    "labels_disagree": Reason("rows of which one key meets an image and another does not", "check patient and issuer"),
    "patient_in_two_splits": Reason("patients told two splits, now wholly in the later one", "put each into one split"),
    "mask_ambiguous": Reason("masks whose key fits several images", "key the row with sop_instance_uid"),
    "mask_unusable": Reason("masks named in a labels file that could not be used", "see the reasons above"),
    "mask_size_differs": Reason("masks whose size is not their image's", "export them at the size of the image"),
}
FLAGS: Final = {
    "looks_inverted": Reason("bone is dark and air is bright", "correct the photometric interpretation at the source"),
    "looks_rotated": Reason("turned by a quarter or half turn", "turn it at the source and purge this one"),
    "mostly_black": Reason(
        "hardly anything but black, or few grey levels", "see whether the exposure or the export failed"
    ),
    "text_heavy": Reason("text in the pixels, which may name a patient", "read it; purge the patient if it names one"),
    "bits_stored_wrong": Reason("more bits than the header says; the pixels were believed", "tell who runs the device"),
}
OURS: Final = frozenset(
    {"time_limit", "memory_limit", "decoder_crashed", "examination_failed", "syntax_unsupported"}
)  # our failures: more memory, time or decoders may mend them
REASONS: Final = CHANGED | REVIEW | ASIDE | TRANSIENT | JOIN
