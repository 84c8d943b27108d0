"""Weights as bytes: exactly what was sent arrives, and nothing that is not plain floats."""

import json
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from multimix.contract.chunks import CHUNK_BYTES, Buffer, chunked, pieces, read_weights, size_of
from multimix.errors import Refused
from tests.client.agent.agents import same_bytes

FLOATS = st.sampled_from([np.float32, np.float64])
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def weights(draw):
    kinds = draw(st.dictionaries(st.text("abc._", min_size=1, max_size=4), st.tuples(FLOATS, SHAPES), max_size=5))
    return {name: np.random.default_rng(0).random(shape).astype(dtype) for name, (dtype, shape) in kinds.items()}


def joined(given_weights) -> bytes:
    return b"".join(chunked(pieces(given_weights)))


def packed(header: object, data: bytes) -> memoryview:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text + data)


def one(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def malformed(data: memoryview) -> str:
    with pytest.raises(Refused) as caught:
        read_weights(data)
    return caught.value.reason


@given(weights())
def test_what_is_sent_arrives_bit_for_bit(sent):
    assert same_bytes(read_weights(memoryview(joined(sent))), dict(sorted(sent.items())))


@given(weights())
def test_the_bytes_are_safetensors_both_ways(sent):
    assert same_bytes(load(joined(sent)), sent)
    assert same_bytes(read_weights(memoryview(save(sent))), dict(sorted(sent.items())))


def test_chunks_are_a_mib_but_the_last_and_arrays_are_views_of_the_bytes_received():
    sent = {
        "a": np.ones(CHUNK_BYTES, np.float32),
        "b": np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
    }
    chunks = list(chunked(pieces(sent)))
    assert [len(chunk) for chunk in chunks[:-1]] == [CHUNK_BYTES] * 4
    buffer = Buffer(size_of(pieces(sent)))
    for chunk in chunks:
        buffer.add(chunk)
    received = read_weights(buffer.whole())
    assert same_bytes(received, sent)
    assert all(not array.flags.owndata for array in received.values())


def test_bytes_that_were_declared_take_memory_when_they_come():
    before = resident_bytes()
    buffer = Buffer(2 << 30)
    buffer.add(bytes(CHUNK_BYTES))
    assert resident_bytes() - before < 64 << 20


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": one(dtype="I32")}, bytes(8)),
        ({"a": one(dtype="F16", shape=(4,))}, bytes(8)),
        ({"a": one(offsets=(0, 12))}, bytes(8)),
        ({"a": one(offsets=(0, 8))}, bytes(12)),
        ({"a": one(shape=(3,))}, bytes(8)),
        ({"a": one(shape=(-2,))}, bytes(8)),
        ({"a": one(shape=(2.0,))}, bytes(8)),
        ({"a": one(), "b": one()}, bytes(8)),
        ({"a": one(), "b": one(offsets=(4, 12))}, bytes(12)),
        ({"a": one(), "b": one(offsets=(12, 20))}, bytes(20)),
        ({"a": one(shape=(1,), offsets=(0, 4)), "b": one("F64", (1,), (4, 12))}, bytes(12)),
        ({"a": one(shape=(0, 1 << 60), offsets=(0, 0))}, b""),
        ({"a": one(shape=(1,) * 40 + (2,))}, bytes(8)),
        ({"a": one() | {"more": 1}}, bytes(8)),
        ({"__metadata__": {"a": "b"}, "a": one()}, bytes(8)),
        ([1], b""),
    ],
)
def test_a_header_that_is_not_exactly_right_is_refused(header, data):
    assert malformed(packed(header, data)) == "request_malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(4),
        b"\xff" * 64,
        pickle.dumps({"a": np.ones(3)}),
        packed({}, b"")[:9],
        b"\x05" + bytes(7) + b"[[[[[",
        (8 * 5000).to_bytes(8, "little") + b"[" * 40_000,
    ],
)
def test_bytes_that_are_no_safetensors_are_refused(data):
    assert malformed(memoryview(bytes(data))) == "request_malformed"


def test_what_cannot_travel_is_refused_before_it_is_sent():
    with pytest.raises(Refused, match="request_malformed"):
        pieces({"a": np.array(["x"], dtype=object)})


def test_a_buffer_takes_what_was_declared_and_not_a_byte_more():
    buffer = Buffer(4)
    buffer.add(b"abc")
    with pytest.raises(Refused, match="3 of 4"):
        buffer.whole()
    for chunk in (b"de", b""):
        with pytest.raises(Refused, match="request_malformed"):
            buffer.add(chunk)
    buffer.add(b"d")
    assert bytes(buffer.whole()) == b"abcd"
