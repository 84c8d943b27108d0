"""The rules for radiographs: each reason code, which rule goes first, and codes as PS3.16 has them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.codedict import codes

from multimix.data.dicom_seg import LUNG_CODES
from multimix.data.radiographs import (
    CHEST_CODES,
    CHEST_WORDS,
    CR_IMAGE,
    DX_FOR_PRESENTATION,
    DX_FOR_PROCESSING,
    LATERAL_CODES,
    LATERAL_WORDS,
    OTHER_WORDS,
    RADIOGRAPHS,
    SECONDARY_CAPTURE,
    SEGMENTATION,
    UNKNOWN_VIEWS,
    VIEW_CODES,
    Header,
    Verdict,
    judge,
)

LIMIT = 10**6
CHEST = Header(
    sop_class=DX_FOR_PRESENTATION,
    modality="DX",
    presentation_intent="FOR PRESENTATION",
    burned_in="NO",
    photometric="MONOCHROME2",
    rows=1000,
    columns=800,
    body_part="CHEST",
    view="PA",
)
PLAIN = replace(CHEST, body_part="", view="")


def verdict(header: Header, **changes) -> Verdict:
    return judge(replace(header, **changes), maximum_pixels=LIMIT)


ACCEPTED = [
    ({}, "PA"),
    ({"view": "AP"}, "AP"),
    ({"sop_class": CR_IMAGE, "modality": "CR"}, "PA"),
    ({"sop_class": SECONDARY_CAPTURE, "modality": "CR"}, "PA"),
    ({"presentation_intent": ""}, "PA"),
    ({"burned_in": ""}, "PA"),
    ({"photometric": "MONOCHROME1"}, "PA"),
    ({"rows": 64, "columns": 64}, "PA"),
    ({"rows": 1000, "columns": 1000}, "PA"),
    ({"body_part": "THORAX"}, "PA"),
    ({"body_part": "PORT CHEST"}, "PA"),
    ({"body_part": "chest"}, "PA"),
    ({"body_part": "", "descriptions": "Thorax p.a."}, "PA"),
    ({"body_part": "", "region_codes": ("51185008",)}, "PA"),
    ({"body_part": "ABDOMEN", "region_codes": ("816094009",)}, "PA"),  # coded goes before named
    ({"view": "", "view_codes": ("399348003",)}, "AP"),
    ({"view": "LL", "view_codes": ("272479007",)}, "PA"),
    ({"view": "", "view_codes": ("399033003",)}, "frontal"),
    ({"view": "", "view_codes": ("R-10214", "272479007")}, "PA"),
    ({"view_codes": ("261665006",)}, "PA"),  # "unknown" leaves it to the name
    ({"view_codes": ("R-41198",)}, "PA"),
    ({"body_part": "CHEST", "descriptions": "abdomen"}, "PA"),
]


@pytest.mark.parametrize(("changes", "view"), ACCEPTED)
def test_frontal_radiographs_of_the_chest_are_accepted(changes, view):
    assert verdict(CHEST, **changes) == Verdict("accept", "", view)


ASIDE = [
    ({"sop_class": DX_FOR_PROCESSING}, "for_processing"),
    ({"presentation_intent": "FOR PROCESSING"}, "for_processing"),
    ({"modality": "CT"}, "other_modality"),
    ({"modality": ""}, "other_modality"),
    ({"sop_class": "1.2.840.10008.5.1.4.1.1.2"}, "other_modality"),  # CT
    ({"sop_class": SEGMENTATION}, "other_modality"),
    ({"sop_class": ""}, "other_modality"),
    ({"frames": 2}, "multi_frame"),
    ({"frames": -1}, "multi_frame"),
    ({"burned_in": "YES"}, "burned_in_annotation"),
    ({"samples": 3}, "not_grey"),
    ({"photometric": "RGB"}, "not_grey"),
    ({"photometric": ""}, "not_grey"),
    ({"rows": 1001, "columns": 1000}, "too_many_pixels"),
    ({"rows": 65535, "columns": 65535}, "too_many_pixels"),
    ({"rows": 63}, "too_few_pixels"),
    ({"columns": 63}, "too_few_pixels"),
    ({"rows": 0, "columns": 0}, "too_few_pixels"),
    ({"rows": -100, "columns": -100}, "too_few_pixels"),
    ({"body_part": "HAND"}, "other_body_part"),
    ({"body_part": "CSPINE"}, "other_body_part"),
    ({"body_part": "", "region_codes": ("818981001",)}, "other_body_part"),
    ({"body_part": "", "descriptions": "KNEE LEFT"}, "other_body_part"),
    ({"view": "LL"}, "lateral_view"),
    ({"view": "LATERAL"}, "lateral_view"),
    ({"view_codes": ("399173006",)}, "lateral_view"),
    ({"view_codes": ("399173006", "261665006")}, "lateral_view"),
    ({"view": "", "orientation": ("P", "F")}, "lateral_view"),
    ({"view": "", "orientation": ("AL", "F")}, "lateral_view"),
    ({"view": "", "descriptions": "CHEST LAT"}, "lateral_view"),
    ({"view": "LLD"}, "other_view"),
    ({"view": "RAO"}, "other_view"),
    ({"view_codes": ("399135007",)}, "other_view"),  # left anterior oblique
    ({"view_codes": ("399348003", "272479007")}, "other_view"),  # AP and PA at once
]


@pytest.mark.parametrize(("changes", "reason"), ASIDE)
def test_what_is_plainly_something_else_is_set_aside_with_its_reason(changes, reason):
    assert verdict(CHEST, **changes) == Verdict("aside", reason, "")


REVIEWED = [
    ({"orientation": ("P", "F")}, "view_contradicted", "PA"),
    ({"descriptions": "LATERAL"}, "view_contradicted", "PA"),
    ({"view_codes": ("272479007", "399173006")}, "view_contradicted", "PA"),
    ({"region_codes": ("302551006",)}, "body_part_unknown", "PA"),  # entire thorax: no code of PS3.16
    ({"region_codes": ("818981001",)}, "body_part_unknown", "PA"),  # the abdomen's, and named chest
    ({"body_part": "CHESTABDOMEN"}, "body_part_unknown", "PA"),
    ({"body_part": "UNKNOWN"}, "body_part_unknown", "PA"),
    ({"body_part": "", "descriptions": "PORTABLE AP HEAD UP 45"}, "body_part_unknown", "PA"),
    ({"view": ""}, "view_unknown", ""),
    ({"view": "", "view_codes": ("261665006",)}, "view_unknown", ""),
    ({"view": "", "orientation": ("L", "F")}, "view_unknown", ""),
    ({"view": "", "descriptions": "CHEST PA AND LATERAL"}, "view_unknown", ""),
    ({"body_part": ""}, "body_part_unknown", "PA"),
    ({"body_part": "", "descriptions": "portable"}, "body_part_unknown", "PA"),
    ({"body_part": "", "descriptions": "CHEST AND ABDOMEN"}, "body_part_unknown", "PA"),
    ({"body_part": "", "view": ""}, "view_unknown", ""),
]


@pytest.mark.parametrize(("changes", "reason", "view"), REVIEWED)
def test_what_might_be_a_frontal_chest_waits_for_a_person(changes, reason, view):
    assert verdict(CHEST, **changes) == Verdict("review", reason, view)


IN_ORDER = [
    ("for_processing", {"presentation_intent": "FOR PROCESSING"}),
    ("other_modality", {"modality": "CT"}),
    ("multi_frame", {"frames": 2}),
    ("burned_in_annotation", {"burned_in": "YES"}),
    ("not_grey", {"samples": 3}),
    ("too_many_pixels", {"rows": 40_000, "columns": 40_000}),
    ("other_body_part", {"body_part": "HAND"}),
    ("lateral_view", {"view": "LL"}),
]


@pytest.mark.parametrize("first", range(len(IN_ORDER)))
def test_of_several_reasons_the_first_of_the_order_is_given(first):
    changes = {name: value for _, wrong in IN_ORDER[first:] for name, value in wrong.items()}
    assert verdict(CHEST, **changes).reason == IN_ORDER[first][0]


headers = st.builds(
    Header,
    sop_class=st.sampled_from([*RADIOGRAPHS, DX_FOR_PROCESSING, ""]),
    modality=st.sampled_from(["CR", "DX", "CT"]),
    frames=st.integers(0, 2),
    burned_in=st.sampled_from(["YES", "NO", ""]),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2", "RGB"]),
    rows=st.integers(0, 2000),
    columns=st.integers(0, 2000),
    body_part=st.sampled_from(["", "CHEST", "HAND", "\u00fc"]),
    region_codes=st.lists(st.sampled_from([*CHEST_CODES, "1"]), max_size=2).map(tuple),
    view=st.sampled_from(["", "PA", "AP", "LL", "?"]),
    view_codes=st.lists(st.sampled_from([*VIEW_CODES, *LATERAL_CODES, *UNKNOWN_VIEWS, "1"]), max_size=2).map(tuple),
    orientation=st.sampled_from([(), ("",), ("P", "F"), ("L", "F")]),
    descriptions=st.text(max_size=9),
)


@given(header=headers)
def test_only_a_single_grey_chest_of_a_radiographic_class_is_ever_accepted(header):
    decision, reason, view = judge(header, maximum_pixels=LIMIT)
    assert (decision == "accept") == (reason == "")
    if decision == "accept":
        assert view in {"PA", "AP", "frontal"}
        assert header.modality in {"CR", "DX"}
        assert header.sop_class in RADIOGRAPHS
        assert header.photometric.startswith("MONOCHROME")
        assert header.rows * header.columns <= LIMIT
        assert header.burned_in != "YES"


@given(text=st.text(max_size=40))
def test_free_text_alone_never_makes_a_frontal_view(text):
    assert verdict(PLAIN, descriptions=text).decision != "accept"


def test_words_of_the_chest_and_of_elsewhere_are_disjoint_and_laterals_are_no_frontals():
    assert not CHEST_WORDS & OTHER_WORDS
    assert not LATERAL_WORDS & {"PA", "AP", "FRONTAL"}
    assert not LATERAL_CODES & VIEW_CODES.keys()
    assert not UNKNOWN_VIEWS & (VIEW_CODES.keys() | LATERAL_CODES)


def test_the_header_hides_its_free_text():
    assert "Doe" not in repr(replace(CHEST, descriptions="Doe", body_part="Doe", view="Doe"))


# What PS3.16 (in pydicom) calls a SNOMED CT code, a legacy SNOMED RT code standing for its successor.
NAMES: dict[str, set[str]] = {}
for concept, values in concepts["SCT"].items():
    for value in values:
        NAMES.setdefault(value, set()).add(concept)


def names(code: str) -> set[str]:
    return NAMES.get(mapping["SRT"].get(code, code), set())


# R-10214 is CID 4010's code of before 2017, 399066004 its first translation; pydicom lists the present ones alone.
FORMER = {"R-10214", "399066004"}
# SNOMED's right and left lung, which segmentation tools write, in no context group of PS3.16.
ONE_SIDED = {"3341006", "44029006", "T-28100", "T-28500"}


@pytest.mark.parametrize("code", sorted(VIEW_CODES.keys() - FORMER))
def test_codes_of_views_are_those_of_ps3_16(code):
    meant = {"PA": "PosteroAnterior", "AP": "AnteroPosterior", "frontal": "Frontal"}[VIEW_CODES[code]]
    assert meant in names(code)


@pytest.mark.parametrize("code", sorted(LATERAL_CODES))
def test_codes_of_lateral_views_are_those_of_ps3_16(code):
    assert names(code) & {"LateralProjection", "Lateral", "LeftLateral", "RightLateral", "Sagittal"}


@pytest.mark.parametrize("code", sorted(CHEST_CODES))
def test_codes_of_the_chest_are_those_of_ps3_16(code):
    assert names(code) & {"Chest", "Thorax", "ThoracicStructure", "ChestCavity", "Lung"}


@pytest.mark.parametrize("code", sorted(LUNG_CODES - ONE_SIDED))
def test_codes_of_lungs_are_those_of_ps3_16(code):
    assert "Lung" in names(code)


def test_the_codes_of_one_lung_are_no_other_concept_of_ps3_16():
    assert not ONE_SIDED & (NAMES.keys() | mapping["SRT"].keys())


@pytest.mark.parametrize("code", sorted(UNKNOWN_VIEWS))
def test_codes_of_the_unknown_are_those_of_ps3_16(code):
    assert "Unknown" in names(code)


def test_every_view_that_ps3_16_names_is_frontal_lateral_or_set_aside():
    for name in codes.cid4010.dir():
        found = verdict(CHEST, view_codes=(getattr(codes.cid4010, name).value,))
        if name in {"PosteroAnterior", "AnteroPosterior", "Frontal"}:
            assert found.decision == "accept", name
        elif name in {"LateralProjection", "LeftLateral", "RightLateral", "Sagittal"}:
            assert found.reason == "lateral_view", name
        else:
            assert found.reason == "other_view", name
