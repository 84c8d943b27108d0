"""Weights as safetensors bytes in chunks: sent without a copy of them all, received into one buffer as views of it.

The layout (https://github.com/huggingface/safetensors): eight bytes of header length, a JSON header, the arrays' bytes.
The sender is not trusted: whatever is not plain little-endian floats that fill the bytes exactly is refused, and no
memory is filled that the sender did not send.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from multimix.config import Frozen
from multimix.contract.messages import Weights
from multimix.errors import Refused

CHUNK_BYTES: Final = 1 << 20
_LENGTH_BYTES: Final = 8
_ALIGNMENT: Final = 8
_MOST_HEADER_BYTES: Final = 8 << 20
_TYPES: Final[dict[str, np.dtype[Any]]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4")}
_NAMES: Final = {dtype: name for name, dtype in _TYPES.items()}
_Length = Annotated[int, Field(ge=0, le=1 << 40)]

Piece = bytes | memoryview


class _Array(Frozen):
    """One entry of the header."""

    dtype: Literal["F32", "F64"]
    shape: Annotated[tuple[_Length, ...], Field(max_length=8)]
    data_offsets: tuple[_Length, _Length]


_HEADER: Final = TypeAdapter(dict[Annotated[str, Field(max_length=256)], _Array])


class Buffer:
    """The bytes of a message whose length was declared; more than declared is refused, less shows in `whole`."""

    def __init__(self, size: int) -> None:
        # Not a bytearray, which writes zeros: here the system gives the pages when what was declared has come.
        self._data, self._filled = np.empty(size, np.uint8), 0

    def add(self, chunk: bytes) -> None:
        """Take the next chunk; Refused `request_malformed` if it is empty or too much."""
        end = self._filled + len(chunk)
        if not chunk or end > len(self._data):
            raise Refused("request_malformed", f"not the {len(self._data)} bytes declared")
        self._data[self._filled : end] = np.frombuffer(chunk, np.uint8)
        self._filled = end

    @property
    def full(self) -> bool:
        """Whether all is there that was declared."""
        return self._filled == len(self._data)

    def whole(self) -> memoryview:
        """Return the bytes; Refused `request_malformed` if some are missing."""
        if not self.full:
            raise Refused("request_malformed", f"{self._filled} of {len(self._data)} bytes")
        return self._data.data


def pieces(weights: Weights) -> list[Piece]:
    """Return header and arrays in the order of the layout; arrays are not copied.

    Raises:
        Refused: `request_malformed` for arrays of anything but float32 and float64.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in weights.items()}
    if any(array.dtype not in _NAMES for array in arrays.values()):
        raise Refused("request_malformed", "weights are neither float32 nor float64")
    header, end = dict[str, object](), 0
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so each begins at a multiple of its size
    for name in names:
        start, end = end, end + arrays[name].nbytes
        header[name] = {"dtype": _NAMES[arrays[name].dtype], "shape": arrays[name].shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    views = [arrays[name].reshape(-1).view(np.uint8).data for name in names if arrays[name].size]
    return [len(text).to_bytes(_LENGTH_BYTES, "little") + text, *views]


def size_of(parts: Iterable[Piece]) -> int:
    """Return how many bytes they are together."""
    return sum(len(part) for part in parts)


def chunked(parts: Iterable[Piece]) -> Iterator[bytes]:
    """Yield all bytes in chunks of a MiB, the last one shorter."""
    pending = bytearray()
    for part in parts:
        view, start = memoryview(part), 0
        while start < len(view):
            taken = view[start : start + CHUNK_BYTES - len(pending)]
            pending += taken
            start += len(taken)
            if len(pending) == CHUNK_BYTES:
                yield bytes(pending)
                pending.clear()
    if pending:
        yield bytes(pending)


def read_weights(data: memoryview) -> Weights:
    """Return the arrays as views of the bytes, in name order.

    Raises:
        Refused: `request_malformed` unless the header is of plain floats whose places follow one another, each at a
            multiple of its item's size, and fill the bytes exactly.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    begin = _LENGTH_BYTES + length
    if length > _MOST_HEADER_BYTES or begin % _ALIGNMENT or begin > len(data):
        raise Refused("request_malformed", "no safetensors header")
    try:
        header = _HEADER.validate_json(bytes(data[_LENGTH_BYTES:begin]), strict=True)
        _check_places(header, len(data) - begin)
        return {name: _view(data[begin:], header[name]) for name in sorted(header)}
    except (ValidationError, ValueError):
        raise Refused("request_malformed", "weights are not plain arrays of floats") from None


def _check_places(header: dict[str, _Array], data_bytes: int) -> None:
    """ValueError where arrays overlap, leave gaps, are misaligned or go beyond the data."""
    expected = 0
    for array in sorted(header.values(), key=lambda each: each.data_offsets):
        start, end = array.data_offsets
        if start != expected or start % _TYPES[array.dtype].itemsize or end > data_bytes:
            raise ValueError("place")
        expected = end
    if expected != data_bytes:
        raise ValueError("gap")


def _view(data: memoryview, array: _Array) -> np.ndarray:
    start, end = array.data_offsets
    return np.frombuffer(data[start:end], _TYPES[array.dtype]).reshape(array.shape)
