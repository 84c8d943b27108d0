"""Reading a header: the allow-list, pseudonyms, transfer syntaxes, and what hostile values become."""

import io

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from multimix.data.dicom import (
    HEADER_ELEMENTS,
    DicomError,
    Parsed,
    accession_key,
    parse_header,
    patient_key,
    read,
    uid_key,
)
from multimix.data.phantom_dicom import TRANSFER_SYNTAXES, PhantomDicom, dicom_bytes, phantom_dataset
from multimix.data.pseudonyms import Pseudonyms
from multimix.data.radiographs import judge

PSEUDONYMS = Pseudonyms(b"secret of the test site, 32 byte")
IMAGE = np.arange(64 * 72).reshape(72, 64).astype(np.uint8)
OPTIONS = {name: PhantomDicom(transfer_syntax=name, bits_stored=8) for name in TRANSFER_SYNTAXES}


def phantom(**options) -> Dataset:
    return phantom_dataset(
        IMAGE, patient_id="P-1", accession="A-1", seed=1, options=PhantomDicom(**{"bits_stored": 8, **options})
    )


def parse(dataset: Dataset | bytes, *, without_preamble: bool = False) -> Parsed:
    data = dataset if isinstance(dataset, bytes) else dicom_bytes(dataset)
    return parse_header(data, PSEUDONYMS, without_preamble=without_preamble)


def reason(dataset: Dataset | bytes, **given) -> str:
    with pytest.raises(DicomError) as caught:
        parse(dataset, **given)
    assert caught.value.__cause__ is None
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


def keyed(**values: str) -> Dataset:
    dataset = phantom()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def test_the_header_holds_what_the_rules_read():
    header = parse(phantom(modality="DX", monochrome=1, view="AP")).header
    assert (header.sop_class, header.modality) == ("1.2.840.10008.5.1.4.1.1.1.1", "DX")
    assert (header.rows, header.columns, header.frames, header.samples) == (72, 64, 1, 1)
    assert (header.photometric, header.presentation_intent) == ("MONOCHROME1", "FOR PRESENTATION")
    assert (header.view, header.view_codes) == ("AP", ("399348003",))
    assert (header.body_part, header.region_codes, header.orientation) == ("CHEST", ("51185008",), ("L", "F"))


@pytest.mark.parametrize("name", TRANSFER_SYNTAXES)
def test_header_and_pseudonyms_are_those_of_explicit_little_endian_in_every_syntax(name):
    parsed, plain = parse(phantom(transfer_syntax=name)), parse(phantom())
    assert (parsed.header, parsed.keys) == (plain.header, plain.keys)
    assert parsed.syntax == TRANSFER_SYNTAXES[name]


def test_without_preamble_and_meta_the_header_is_the_same_and_the_syntax_is_found():
    bare = dicom_bytes(phantom(transfer_syntax="implicit_le"), preamble=False)
    assert parse(bare, without_preamble=True) == parse(phantom(transfer_syntax="implicit_le"))


def test_without_preamble_a_file_needs_the_option():
    assert reason(dicom_bytes(phantom(transfer_syntax="implicit_le"), preamble=False)) == "no_preamble"


@pytest.mark.parametrize("option", [False, True])
@pytest.mark.parametrize("junk", [b"", b"\0", b"PK\x03\x04" * 99, b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(500)])
def test_what_is_not_dicom_is_named_so_even_with_the_option(junk, option):
    assert reason(junk, without_preamble=option) == "not_dicom"


@given(junk=st.binary(max_size=300), option=st.booleans())
def test_random_bytes_end_in_a_reason(junk, option):
    assert reason(junk, without_preamble=option) in {"not_dicom", "no_preamble", "header_unreadable"}


@given(junk=st.binary(max_size=300))
def test_random_bytes_behind_a_preamble_end_in_a_reason(junk):
    assert reason(bytes(128) + b"DICM" + junk) in {"header_unreadable", "no_sop_instance_uid"}


@given(position=st.integers(132, 1100), byte=st.integers(0, 255))
def test_one_wrong_byte_anywhere_in_the_header_gives_a_header_or_a_reason(position, byte):
    data = bytearray(dicom_bytes(phantom()))
    data[position] = byte
    try:
        parsed = parse(bytes(data))
    except DicomError as error:
        assert error.reason in {"header_unreadable", "no_sop_instance_uid", "not_dicom"}
    else:
        assert judge(parsed.header, maximum_pixels=10**9).decision in {"accept", "review", "aside"}


@pytest.mark.parametrize("kept", [1.0, 0.9, 0.7])
def test_the_header_needs_no_pixels(kept):
    data = dicom_bytes(phantom())
    start = data.rindex(b"\xe0\x7f\x10\x00")  # (7FE0,0010)
    assert parse(data[: start + int(kept * (len(data) - start))]) == parse(data)


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("NumberOfFrames", "IS", b"many"),
        ("Rows", "US", b"\x01\x00\x02\x00"),
        ("Columns", "LO", b"JOHN DOE"),
        ("ViewCodeSequence", "LO", b"JOHN DOE"),
        ("SamplesPerPixel", "US", b"\x01"),
    ],
)
def test_values_that_make_no_sense_are_unreadable_and_not_quoted(keyword, vr, value):
    plain = phantom()
    tag = pydicom.tag.Tag(keyword)
    element = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + vr.encode()
    if keyword in plain:
        del plain[keyword]
    data = dicom_bytes(plain)
    following = next(each.tag for each in plain if each.tag > tag)
    needle = following.group.to_bytes(2, "little") + following.element.to_bytes(2, "little")
    spot = data.index(needle + plain[following].VR.encode())
    spoilt = data[:spot] + element + len(value).to_bytes(2, "little") + value + data[spot:]
    assert reason(spoilt) == "header_unreadable"


def test_pseudonyms_are_those_of_the_identifiers_and_never_the_identifiers():
    dataset = keyed(PatientID="Doe-4711", IssuerOfPatientID="North", AccessionNumber="ACC-9")
    parsed = parse(dataset)
    assert parsed.keys.patient == patient_key(PSEUDONYMS, "Doe-4711", "North")
    assert parsed.keys.accession == accession_key(PSEUDONYMS, "ACC-9")
    assert parsed.keys.uid == uid_key(PSEUDONYMS, dataset.SOPInstanceUID)
    assert not any(name in repr(parsed) for name in ("Doe-4711", "North", "ACC-9", str(dataset.SOPInstanceUID)))


@pytest.mark.parametrize("nobody", ["", "   ", "\0\0"])
def test_a_missing_or_blank_patient_or_accession_has_no_pseudonym(nobody):
    keys = parse(keyed(PatientID=nobody, AccessionNumber=nobody)).keys
    assert (keys.patient, keys.accession) == ("", "")


def test_padding_of_an_identifier_does_not_make_another_patient():
    assert parse(keyed(PatientID=" P-7 ")).keys.patient == parse(keyed(PatientID="P-7")).keys.patient


def test_the_issuer_separates_patients_of_equal_number():
    north, south, none = (parse(keyed(IssuerOfPatientID=name)).keys.patient for name in ("north", "south", ""))
    assert len({north, south, none}) == 3


def test_an_object_without_an_instance_uid_is_refused():
    dataset = phantom()
    data = dicom_bytes(dataset)
    uid = str(dataset.SOPInstanceUID).encode()
    head, tail = data.split(b"\x08\x00\x18\x00UI", 1)  # (0008,0018) of the data set
    size = int.from_bytes(tail[:2], "little")
    assert tail[2 : 2 + len(uid)] == uid
    assert reason(head + tail[2 + size :]) == "no_sop_instance_uid"


@pytest.mark.parametrize("private", ["1.2.840.113619.5.2", "1.2.3.4.19400305.4711"])
def test_a_transfer_syntax_that_is_none_of_dicoms_is_not_passed_on(private):
    file = io.BytesIO()
    dataset = phantom()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(private)
    dataset.save_as(file, implicit_vr=False, little_endian=True, enforce_file_format=True)
    assert parse(file.getvalue()).syntax == "unknown"


def test_only_the_allow_list_is_read():
    dataset = keyed(PatientBirthDate="19400305", InstitutionName="Saint Nowhere", PatientName="DOE^JOHN")
    dataset.add_new((0x0009, 0x0010), "LO", "ACME")
    dataset.add_new((0x0009, 0x1001), "LO", "DOE^JOHN")
    found = read(dicom_bytes(dataset), HEADER_ELEMENTS, without_preamble=False, pixels=False)
    assert {element.keyword for element in found} <= {*HEADER_ELEMENTS, "SpecificCharacterSet"}
    assert "DOE" not in str(found)


def test_the_header_never_shows_its_free_text():
    dataset = keyed(StudyDescription="CHEST OF JOHN DOE", BodyPartExamined="DOE", ViewPosition="DOE")
    assert "DOE" not in repr(parse(dataset).header)
