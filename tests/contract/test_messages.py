"""Contract messages: one text and one hash for each document and set of weights, and nothing unknown let in."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from multimix.config import MethodConfig
from multimix.contract.messages import (
    MEAN_MASK_SIDE,
    ClassCounts,
    EvaluateReport,
    LocalWork,
    Picture,
    RoundPlan,
    SiteCard,
    Teachers,
    TrainReport,
    canonical_json,
    module_of,
    sha256_text,
    weights_sha256,
)
from multimix.contract.statistics import EvaluationStatistics

HASH = "0" * 64
CARD = {
    "site": "north",
    "role": "train",
    "synthetic": True,
    "device": "cpu",
    "image_size": 32,
    "images": 3,
    "patients": 2,
    "training_patients": 2,
    "labelled_patients": {"normal": 1, "pneumonia": 1},
    "masked_patients": {"expert": 2},
    "conventions": ("expert",),
    "data_fingerprint": "f",
    "software": {"python": "3"},
}
EVALUATION = {
    "site": "north",
    "job_id": "job",
    "round": 1,
    "plan_sha256": HASH,
    "split": "test",
    "statistics": {"patients": 1, "images": 1},
}
TRAINING = {
    "site": "north",
    "job_id": "job",
    "round": 1,
    "plan_sha256": HASH,
    "weights_sha256": HASH,
    "steps": 2,
    "teachers": {"encoder": {"labelled": 1}},
    "losses": {"total": 0.5},
}
PLAN = {"job_id": "job", "round": 1, "kind": "train", "seed": 7, "method": {}, "weights_sha256": HASH}
DOCUMENTS = [
    (ClassCounts, {}),
    (SiteCard, CARD),
    (LocalWork, {"steps": 1, "images_per_group": 1}),
    (RoundPlan, PLAN),
    (Teachers, {}),
    (EvaluateReport, EVALUATION),
    (TrainReport, TRAINING),
    (Picture, {"caption": "", "png": b""}),
]
NAMES = st.text(st.sampled_from("ab\0.,\"'é"), min_size=1, max_size=6)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.floats(width=32))
WEIGHTS = st.dictionaries(NAMES, ARRAYS, max_size=4)


@pytest.mark.parametrize(("kind", "fields"), DOCUMENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_extra_key_is_refused(kind, fields):
    kind.model_validate(fields)
    with pytest.raises(ValidationError, match="surprise"):
        kind.model_validate({**fields, "surprise": 1})


@pytest.mark.parametrize(
    "path",
    [
        ("method",),
        ("method", "network"),
        ("method", "views"),
        ("method", "objective"),
        ("method", "optimiser"),
        ("work",),
    ],
    ids=".".join,
)
def test_an_extra_key_anywhere_inside_a_plan_is_refused(path):
    document = RoundPlan.model_validate({**PLAN, "work": {"steps": 1, "images_per_group": 1}}).model_dump()
    inner = document
    for name in path:
        inner = inner[name]
    inner["surprise"] = 1
    with pytest.raises(ValidationError, match="surprise"):
        RoundPlan.model_validate(document)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["losses", "seconds"])
def test_a_report_holds_finite_numbers_only(field, value):
    with pytest.raises(ValidationError, match=field):
        TrainReport.model_validate({**TRAINING, field: {"total": value}})
    with pytest.raises(ValidationError, match="pseudo_label_rate"):
        TrainReport.model_validate({**TRAINING, "pseudo_label_rate": value})
    with pytest.raises(ValidationError, match="seconds"):
        EvaluateReport.model_validate({**EVALUATION, "seconds": {"evaluation": value}})


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_report_read_from_json_holds_finite_numbers_only(text):
    document = json.dumps(TRAINING).replace("0.5", text)
    assert text in document
    with pytest.raises(ValidationError, match="losses"):
        TrainReport.model_validate_json(document)


@pytest.mark.parametrize("count", [-1, 1_000_000_001, 1.5])
def test_a_count_is_a_whole_number_in_range(count):
    with pytest.raises(ValidationError, match="labelled"):
        Teachers.model_validate({"labelled": count})


@pytest.mark.parametrize("name", ["", "ward a", "../etc", "a/b", "-x", "a" * 65, "a\n", "Zürich"])
def test_a_site_name_is_plain(name):
    with pytest.raises(ValidationError, match="site"):
        SiteCard.model_validate({**CARD, "site": name})


@pytest.mark.parametrize("length", [MEAN_MASK_SIDE**2 - 1, MEAN_MASK_SIDE**2 + 1])
def test_a_mean_mask_has_32_by_32_values(length):
    with pytest.raises(ValidationError, match="mean_mask"):
        RoundPlan.model_validate({**PLAN, "mean_mask": (0,) * length})


def test_a_plan_cannot_ask_for_privacy_parameters_that_this_version_does_not_know():
    with pytest.raises(ValidationError, match="dp"):
        RoundPlan.model_validate({**PLAN, "dp": {"epsilon": 8}})


def test_a_document_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        RoundPlan.model_validate(PLAN).round = 2


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    conventions = {"conventions": ("a", "b")}
    a = SiteCard.model_validate({**CARD, **conventions, "masked_patients": {"a": 1, "b": 2}})
    b = SiteCard.model_validate({**dict(reversed(CARD.items())), **conventions, "masked_patients": {"b": 2, "a": 1}})
    assert canonical_json(a) == canonical_json(b)


def test_canonical_json_is_one_line_of_ascii_with_sorted_keys():
    text = canonical_json(Picture(caption="Lünge\n", png=b""))
    assert text == '{"caption":"L\\u00fcnge\\n","png":""}'


@given(rate=st.floats(0, 1), loss=st.floats(-1e6, 1e6), steps=st.integers(0, 10**9))
def test_canonical_json_reads_back_as_the_same_document(rate, loss, steps):
    report = TrainReport.model_validate(
        {**TRAINING, "pseudo_label_rate": rate, "losses": {"total": loss}, "steps": steps}
    )
    text = canonical_json(report)
    assert TrainReport.model_validate_json(text) == report
    assert canonical_json(TrainReport.model_validate_json(text)) == text


def test_a_plan_reads_back_with_its_method():
    plan = RoundPlan(**{**PLAN, "method": MethodConfig()}, work=LocalWork(steps=3, images_per_group=2))
    assert RoundPlan.model_validate_json(canonical_json(plan)) == plan


def test_the_hash_of_a_text_is_that_of_its_utf8_bytes():
    # Published test vector: SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    assert sha256_text("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(weights=WEIGHTS, random=st.randoms())
def test_the_hash_of_weights_does_not_depend_on_their_order(weights, random):
    shuffled = list(weights.items())
    random.shuffle(shuffled)
    assert weights_sha256(dict(shuffled)) == weights_sha256(weights)


@given(a=WEIGHTS, b=WEIGHTS)
def test_equal_hashes_mean_equal_weights(a, b):
    def exact(weights):
        return {name: (value.shape, value.tobytes()) for name, value in weights.items()}

    assert (weights_sha256(a) == weights_sha256(b)) == (exact(a) == exact(b))


@given(array=hnp.arrays(np.float32, (2, 3)), byte=st.integers(0, 23), bit=st.integers(0, 7))
def test_every_bit_of_the_weights_changes_the_hash(array, byte, bit):
    raw = bytearray(array.tobytes())
    raw[byte] ^= 1 << bit
    changed = np.frombuffer(bytes(raw), np.float32).reshape(2, 3)
    assert weights_sha256({"w": changed}) != weights_sha256({"w": array})


@pytest.mark.parametrize(
    "other",
    [
        {"v": np.zeros((2, 2), np.float32)},
        {"w": np.zeros(4, np.float32)},
        {"w": np.zeros((1, 4), np.float32)},
        {"w": np.zeros((2, 2), np.int32)},
        {"w": np.zeros((2, 2), ">f4")},
        {"w": np.zeros((2, 2), np.float32), "x": np.zeros(0, np.float32)},
        {},
    ],
    ids=["name", "flat", "shape", "type", "byte order", "one more", "none"],
)
def test_name_type_and_shape_change_the_hash_where_the_bytes_do_not(other):
    assert weights_sha256(other) != weights_sha256({"w": np.zeros((2, 2), np.float32)})


def test_a_scalar_and_an_array_of_one_hash_differently():
    assert weights_sha256({"w": np.zeros((), np.float32)}) != weights_sha256({"w": np.zeros(1, np.float32)})


def test_a_crafted_name_cannot_imitate_a_second_array():
    """Join the first array's header and bytes into the name of the second."""
    zeros = np.zeros(1, np.float32)
    honest = {"a": zeros, "b": zeros}
    for separator in ("\0<f4\0(1,)\0\0\0\0\0", '", "<f4", [1]]\0\0\0\0\0["'):
        assert weights_sha256({f"a{separator}b": zeros}) != weights_sha256(honest)


def test_the_memory_layout_of_weights_does_not_change_the_hash():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    strided = np.repeat(array, 2, axis=1)[:, ::2]
    assert weights_sha256({"w": np.asfortranarray(array)}) == weights_sha256({"w": array})
    assert weights_sha256({"w": strided}) == weights_sha256({"w": array})


@pytest.mark.parametrize(
    ("parameter", "module"),
    [("encoder.blocks.0.conv1.weight", "encoder"), ("classifier.linear.bias", "classifier"), ("decoder", "decoder")],
)
def test_a_parameter_belongs_to_the_module_it_names_first(parameter, module):
    assert module_of(parameter) == module


@pytest.mark.parametrize("parameter", ["", "head.weight", "encoders.x", ".encoder"])
def test_a_foreign_parameter_belongs_to_no_module(parameter):
    with pytest.raises(ValueError, match="belongs to none"):
        module_of(parameter)


def test_statistics_inside_a_report_are_checked_too():
    with pytest.raises(ValidationError, match="more patients than images"):
        EvaluateReport.model_validate({**EVALUATION, "statistics": {"patients": 2, "images": 1}})
    assert EvaluateReport.model_validate(EVALUATION).statistics == EvaluationStatistics(patients=1, images=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"images": 1},
        {"training_patients": 3},
        {"labelled_patients": {"normal": 10**9, "pneumonia": 0}},
        {"masked_patients": {"expert": 3}},
        {"masked_patients": {"other": 1}},
        {"masked_patients": {"evil\x1b[31m": 1}, "conventions": ("evil\x1b[31m",)},
        {"device": "cpu\nforged line"},
        {"software": {f"p{i}": "1" for i in range(17)}},
    ],
)
def test_a_card_that_cannot_be_true_or_shown_is_refused(fields):
    with pytest.raises(ValidationError):
        SiteCard.model_validate(CARD | fields)


@pytest.mark.parametrize(
    "fields", [{"losses": {"total": 1e308}}, {"losses": {"invented": 0.5}}, {"seconds": {"step": 1e308}}]
)
def test_figures_that_would_break_a_report_are_refused(fields):
    with pytest.raises(ValidationError):
        TrainReport.model_validate(TRAINING | fields)
