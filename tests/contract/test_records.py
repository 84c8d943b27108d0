"""Contract messages through Flower's records and its wire format, and what a hostile peer may put there."""

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multimix.contract.messages import EvaluateReport, Picture, SiteCard, Teachers, TrainReport, weights_sha256
from multimix.contract.records import (
    array_record,
    card_reply,
    evaluated_reply,
    plan_record,
    read_pictures,
    read_reply,
    read_request,
    refusal_reply,
    trained_reply,
    unpack_arrays,
)
from multimix.contract.signing import SignedPlan
from multimix.contract.site import Evaluated, Trained
from multimix.contract.statistics import EvaluationStatistics
from multimix.errors import Refused

HASH = "ab" * 32
SIGNED = SignedPlan('{"a": "ü"}', "c2lnbmF0dXJl")
WEIGHTS = {"encoder.w": np.arange(6, dtype=np.float32).reshape(2, 3), "classifier.b": np.float32([0.5, -0.0])}
CARD = SiteCard(
    site="north",
    role="held-out",
    synthetic=False,
    device="cpu",
    image_size=32,
    images=3,
    patients=2,
    training_patients=2,
    labelled_patients={"normal": 1},
    masked_patients={"expert": 2},
    conventions=("expert",),
    mean_masks={"expert": tuple(i % 256 for i in range(1024))},
    data_fingerprint="f",
    software={"python": "3"},
)
EVALUATION = EvaluateReport(
    site="north",
    job_id="job",
    round=1,
    plan_sha256=HASH,
    split="test",
    statistics=EvaluationStatistics(patients=1, images=2, withheld=("all:patients_below_minimum",)),
    seconds={"evaluation": 0.1},
)
TRAINING = TrainReport(
    site="north",
    job_id="job",
    round=1,
    plan_sha256=HASH,
    weights_sha256=weights_sha256(WEIGHTS),
    steps=2,
    teachers={"encoder": Teachers(labelled=1, unlabelled=2)},
    losses={"total": 1 / 3},
    pseudo_label_rate=0.25,
    evaluation=EVALUATION,
)
PICTURES = (Picture(caption="label normal", png=b"\x89PNG\x00\xff"), Picture(caption="Lünge", png=b""))


def travelled(content: RecordDict) -> RecordDict:
    """Return what comes out of Flower's wire format: every object deflated to bytes and inflated again."""
    contents = {name: each.deflate() for name, each in get_all_nested_objects(content).items()}
    return inflate_object_from_contents(content.object_id, contents)


def request(plan: ConfigRecord | None = None, arrays: ArrayRecord | None = None) -> RecordDict:
    return RecordDict({"plan": plan or plan_record(SIGNED), "arrays": arrays or array_record(WEIGHTS)})


def saved(value: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=allow_pickle)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, w=np.zeros(2, np.float32))
    return file.getvalue()


def of_bytes(data: bytes, stype: str = "safetensors") -> ArrayRecord:
    return ArrayRecord({"weights": Array("uint8", (len(data),), stype, data)})


def packed(weights: dict[str, np.ndarray]) -> bytes:
    return array_record(weights)["weights"].data


def refusal(content: RecordDict, kind: type = TrainReport) -> Refused:
    with pytest.raises(Refused) as caught:
        read_reply(travelled(content), kind)
    return caught.value


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        (a[k].dtype, a[k].shape, a[k].tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes()) for k in a
    )


def test_a_request_arrives_as_it_was_sent():
    signed, weights = read_request(travelled(request()))
    assert signed == SIGNED
    assert same(weights, WEIGHTS)


@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_side=3)),
        min_size=1,
        max_size=3,
    )
)
def test_weights_keep_every_bit_and_their_hash_on_the_way(weights):
    arrived = unpack_arrays(travelled(RecordDict({"arrays": array_record(weights)})).array_records["arrays"])
    assert same(arrived, weights)
    assert weights_sha256(arrived) == weights_sha256(weights)


def test_weights_in_column_order_arrive_with_the_same_hash():
    weights = {"w": np.asfortranarray(WEIGHTS["encoder.w"])}
    arrived = unpack_arrays(array_record(weights))
    assert (arrived["w"] == weights["w"]).all()
    assert weights_sha256(arrived) == weights_sha256(weights)


def test_weights_arrive_writable():
    arrived = unpack_arrays(array_record(WEIGHTS))
    assert all(value.flags.writeable for value in arrived.values())


def test_a_card_arrives_as_it_was_sent():
    assert read_reply(travelled(card_reply(CARD)), SiteCard) == CARD


def test_a_training_reply_arrives_with_its_evaluation_and_weights():
    content = travelled(trained_reply(Trained(TRAINING, WEIGHTS)))
    assert read_reply(content, TrainReport) == TRAINING
    assert same(unpack_arrays(content.array_records["arrays"]), WEIGHTS)


def test_an_evaluation_reply_arrives_with_its_pictures():
    content = travelled(evaluated_reply(Evaluated(EVALUATION, PICTURES)))
    assert read_reply(content, EvaluateReport) == EVALUATION
    assert read_pictures(content) == PICTURES


def test_an_evaluation_reply_without_pictures_has_no_record_for_them():
    content = travelled(evaluated_reply(Evaluated(EVALUATION)))
    assert set(content) == {"report"}
    assert read_pictures(content) == ()


def test_a_refusal_arrives_with_reason_and_detail_and_nothing_else():
    content = refusal_reply(Refused("too_many_steps", "asked 3, allowed 2"))
    assert dict(content["refusal"]) == {"reason": "too_many_steps", "detail": "asked 3, allowed 2"}
    refused = refusal(content)
    assert (refused.reason, refused.detail) == ("too_many_steps", "asked 3, allowed 2")


def test_a_refusal_never_carries_its_cause():
    refused = Refused("request_malformed")
    refused.__cause__ = ValueError("SENTINEL")
    content = refusal_reply(refused)
    assert b"SENTINEL" not in b"".join(each.deflate() for each in get_all_nested_objects(content).values())


def test_a_refusal_beats_a_report_in_the_same_reply():
    content = trained_reply(Trained(TRAINING, WEIGHTS))
    content["refusal"] = ConfigRecord({"reason": "no"})
    assert refusal(content).reason == "no"


@pytest.mark.parametrize("reason", ["", "A b", "<script>", "a\nfake line", "x" * 65, 7, b"ok", ["a"], "../../x"])
def test_a_reason_that_is_no_code_is_unknown(reason):
    assert refusal(RecordDict({"refusal": ConfigRecord({"reason": reason})})).reason == "unknown"


def test_a_refusal_without_a_reason_is_unknown():
    assert refusal(RecordDict({"refusal": ConfigRecord({})})).reason == "unknown"


def test_the_detail_of_a_refusal_is_one_short_printable_line():
    detail = "first\n12:00:00  job finished\x1b[2J" + "x" * 500
    refused = refusal(RecordDict({"refusal": ConfigRecord({"reason": "no", "detail": detail})}))
    assert refused.detail == "first 12:00:00  job finished [2J" + "x" * 168
    assert len(refused.detail) == 200


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"report": ConfigRecord({})},
        {"report": ConfigRecord({"document": ""})},
        {"report": ConfigRecord({"document": "{}"})},
        {"report": ConfigRecord({"document": 3})},
        {"report": ConfigRecord({"document": EVALUATION.model_dump_json()})},
        {"report": ConfigRecord({"document": TRAINING.model_dump_json().replace('"steps":2', '"steps":2,"x":1')})},
        {"report": ConfigRecord({"document": TRAINING.model_dump_json().replace("0.3333333333333333", "NaN")})},
        {"report": ConfigRecord({"document": "[" * 100_000})},
        {"report": MetricRecord({"document": 1})},
        {"report": array_record(WEIGHTS)},
        {"refusal": MetricRecord({"reason": 1})},
    ],
    ids=[
        *("nothing", "no document", "empty", "no fields", "number", "another report", "extra key", "not a number"),
        *("deep", "metrics", "arrays", "refusal of metrics"),
    ],
)
def test_a_malformed_reply_is_refused(content):
    assert refusal(RecordDict(content)).reason == "reply_malformed"


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"captions": ["a"]},
        {"pngs": [b"a"]},
        {"captions": ["a"], "pngs": [b"a", b"b"]},
        {"captions": ["a"], "pngs": ["text"]},
        {"captions": "a", "pngs": b"a"},
        {"captions": ["a"] * 65, "pngs": [b"a"] * 65},
    ],
    ids=["nothing", "no pngs", "no captions", "unpaired", "text as png", "no lists", "too many"],
)
def test_malformed_pictures_are_refused(record):
    content = evaluated_reply(Evaluated(EVALUATION))
    content["pictures"] = ConfigRecord(record)
    with pytest.raises(Refused, match="reply_malformed"):
        read_pictures(travelled(content))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"plan": plan_record(SIGNED)}),
        RecordDict({"arrays": array_record(WEIGHTS)}),
        request(plan=ConfigRecord({"document": "{}"})),
        request(plan=ConfigRecord({"signature": "x"})),
        RecordDict({"plan": array_record(WEIGHTS), "arrays": plan_record(SIGNED)}),
    ],
    ids=["nothing", "no arrays", "no plan", "no signature", "no document", "records swapped"],
)
def test_a_malformed_request_is_refused(content):
    with pytest.raises(Refused, match="request_malformed"):
        read_request(travelled(content))


ZEROS = packed({"w": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    "record",
    [
        of_bytes(b""),
        of_bytes(b"noise"),
        of_bytes(saved(np.array([print, 1], object), allow_pickle=True)),
        of_bytes(archive()),
        of_bytes(ZEROS[:-1]),
        of_bytes(ZEROS + b"\0\0\0\0"),
        of_bytes(ZEROS.replace(b"[2]", b"[3]")),
        of_bytes(ZEROS.replace(b'"F32"', b'"I32"')),
        ArrayRecord(),
        ArrayRecord({"weights": of_bytes(ZEROS)["weights"], "more": of_bytes(ZEROS)["weights"]}),
        ArrayRecord({"encoder.w": Array(np.zeros(2, np.float32))}),
    ],
    ids=[
        *("empty", "noise", "pickle", "archive", "cut", "too long", "shape above data", "integers"),
        *("nothing", "two arrays", "Flower's own arrays"),
    ],
)
def test_arrays_that_are_not_floats_are_refused_as_malformed(record):
    with pytest.raises(Refused, match="request_malformed"):
        read_request(
            request(arrays=record) if len(record) else RecordDict({"plan": plan_record(SIGNED), "arrays": record})
        )
    with pytest.raises(ValueError, match="not "):
        unpack_arrays(record)


def test_all_weights_are_one_object_of_flowers():
    many = {f"encoder.{number}": np.zeros(2, np.float32) for number in range(100)}
    assert len(get_all_nested_objects(RecordDict({"arrays": array_record(many)}))) < 6


def test_a_header_that_promises_a_petabyte_costs_no_memory():
    lying = ZEROS.replace(b"[2]", b"[9" + b"9" * 12 + b"]")
    with pytest.raises(ValueError, match="not arrays"):
        unpack_arrays(of_bytes(lying))


@given(data=st.binary(max_size=80), position=st.integers(0, 127), tail=st.booleans())
def test_no_bytes_at_all_raise_anything_but_a_value_error(data, position, tail):
    for candidate in (data, ZEROS[:position] + data + (ZEROS[position + len(data) :] if tail else b"")):
        try:
            arrived = unpack_arrays(of_bytes(candidate))
        except ValueError:
            continue
        assert all(value.dtype.kind == "f" for value in arrived.values())
