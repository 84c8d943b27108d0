import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.randomness import derive_seed, stream

KEYS = st.lists(st.one_of(st.integers(), st.text(max_size=8)), max_size=4).map(tuple)


# From coreutils, not from this code: printf '["a",1]' | b2sum -l 64, bytes read little-endian, halved.
@pytest.mark.parametrize(
    ("key", "digest"),
    [(("a", 1), "2204915fb477f654"), (("weak view", 0), "c37d07cad2a1747e"), ((), "71857576257465c7")],
)
def test_a_seed_is_the_same_on_every_machine_and_in_every_version(key, digest):
    assert derive_seed(*key) == int.from_bytes(bytes.fromhex(digest), "little") >> 1


@given(KEYS, KEYS)
def test_different_keys_give_different_seeds(one, other):
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"), [(("1",), (1,)), (("a", "b"), ("a,b",)), (("ab",), ("a", "b")), ((1, 23), (12, 3)), ((), ("",))]
)
def test_keys_that_look_alike_are_told_apart(one, other):
    assert derive_seed(*one) != derive_seed(*other)


@given(KEYS)
def test_seeds_fit_in_63_bits(key):
    assert 0 <= derive_seed(*key) < 2**63


def test_a_stream_starts_afresh_and_is_not_moved_by_others():
    first = stream("x", 1).random(4)
    np.random.default_rng().random(3)
    stream("x", 2).random(9)
    assert np.array_equal(stream("x", 1).random(4), first)
    assert not np.array_equal(stream("x", 2).random(4), first)


def test_another_process_with_another_hash_seed_draws_the_same():
    code = "from multimix.randomness import stream; print(stream('x', 1).integers(2**62))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{stream('x', 1).integers(2**62)}\n".encode()}
