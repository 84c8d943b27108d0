import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from multimix.privacy import noise
from multimix.privacy.noise import SecretStream, commitment, new_secret

SECRET = bytes(range(32))
MILLION = 1_000_000


@pytest.fixture(scope="module")
def stream():
    return SecretStream(SECRET)


@pytest.fixture(scope="module")
def normals(stream):
    return stream.normals("noise", 0, MILLION)


def correlation_in_sigmas(left, right):
    """Of independent standard normals the mean product has mean 0 and standard deviation 1 / sqrt(count)."""
    return abs(np.mean(left * right)) * np.sqrt(len(left))


def test_the_keystream_is_that_of_rfc_8439():
    # Section 2.4.2: the key stream of blocks 1 and 2 with this key and nonce turns the sunscreen text into the cipher.
    nonce = bytes.fromhex("000000000000004a00000000")
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    cipher = bytes.fromhex(
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
        "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
        "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )
    words = noise._words(noise._chacha20(SECRET, nonce, block=1), 16)
    key_stream = words.astype("<u8").tobytes()[: len(text)]
    assert bytes(a ^ b for a, b in zip(text, key_stream, strict=True)) == cipher


def test_words_are_one_stream_however_they_are_asked_for():
    whole = noise._words(noise._chacha20(SECRET, bytes(12)), 100)
    pieces = noise._chacha20(SECRET, bytes(12))
    assert np.array_equal(whole, np.concatenate([noise._words(pieces, 37), noise._words(pieces, 63)]))


def test_normals_have_mean_0_and_variance_1(normals):
    # The mean of n has standard deviation 1 / sqrt(n), their standard deviation 1 / sqrt(2 n): 5 sigma of each.
    assert abs(normals.mean()) < 5 / np.sqrt(MILLION)
    assert abs(normals.std() - 1) < 5 / np.sqrt(2 * MILLION)


def test_normals_have_the_higher_moments_of_a_normal(normals):
    # Var(x^3) = 15, Var(x^4) = 105 - 9.
    assert abs(np.mean(normals**3)) < 5 * np.sqrt(15 / MILLION)
    assert abs(np.mean(normals**4) - 3) < 5 * np.sqrt(96 / MILLION)


def test_normals_follow_the_normal_distribution(normals):
    assert stats.kstest(normals[:200_000], "norm").pvalue > 0.001


def test_tails_are_as_heavy_as_they_have_to_be(normals):
    expected = MILLION * 2 * stats.norm.sf(3.5)  # 465, and binomial
    assert abs(np.sum(np.abs(normals) > 3.5) - expected) < 5 * np.sqrt(expected)


def test_the_extreme_words_make_finite_normals():
    words = np.array([0, 2**64 - 1, 0, 2**64 - 1], dtype=np.uint64)
    out = np.empty(4)
    noise._box_muller(words, out)
    # Radius 0, and sqrt(-2 log 2^-53) = 8.57.
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= np.sqrt(2 * 53 * np.log(2)) * (1 + 1e-12)


def test_both_normals_of_a_pair_are_independent(normals):
    half = noise._CHUNK // 2
    assert correlation_in_sigmas(normals[:half], normals[half : 2 * half]) < 5
    assert correlation_in_sigmas(normals[:half] ** 2 - 1, normals[half : 2 * half] ** 2 - 1) < 10  # Var(x^2) = 2


@pytest.mark.parametrize("lag", [1, 2, noise._CHUNK // 2, noise._CHUNK])
def test_normals_do_not_depend_on_earlier_ones(normals, lag):
    assert correlation_in_sigmas(normals[lag:], normals[:-lag]) < 5


@pytest.mark.parametrize(
    ("purpose", "step"), [("noise", 1), ("noise", 2**32), ("noise", 2**63), ("other", 0), ("", 0), ("nois", 0)]
)
def test_other_steps_and_purposes_are_uncorrelated(stream, normals, purpose, step):
    assert correlation_in_sigmas(normals[:200_000], stream.normals(purpose, step, 200_000)) < 5


def test_successive_steps_are_uncorrelated_at_every_lag(stream):
    steps = np.stack([stream.normals("noise", step, 10_000) for step in range(12)])
    products = steps @ steps.T / np.sqrt(10_000)
    assert np.abs(products[~np.eye(12, dtype=bool)]).max() < 5


def test_other_secrets_make_other_streams(normals):
    other = SecretStream(bytes(31) + b"\x01").normals("noise", 0, MILLION)
    assert correlation_in_sigmas(normals, other) < 5


def test_kinds_of_draws_share_no_bits(stream):
    words = {
        kind: noise._words(stream._stream(kind, "patients", 0), 4).tolist()
        for kind in ("normals", "uniforms", "sampled")
    }
    assert len({word for four in words.values() for word in four}) == 12


def test_joined_texts_do_not_collide():
    assert noise._derived(SECRET, "stream", "ab", "c") != noise._derived(SECRET, "stream", "a", "bc")


@settings(max_examples=20)
@given(st.permutations([("noise", 0), ("noise", 1), ("images", 0), ("images", 1)]), st.integers(1, 50))
def test_draws_do_not_depend_on_their_order(order, count):
    stream = SecretStream(SECRET)
    drawn = {(purpose, step): stream.normals(purpose, step, count) for purpose, step in order}
    for (purpose, step), values in drawn.items():
        assert np.array_equal(values, SecretStream(SECRET).normals(purpose, step, count))


@pytest.mark.parametrize("count", [0, 1, 2, 3, noise._CHUNK - 1, noise._CHUNK + 1, 2 * noise._CHUNK])
def test_there_are_as_many_as_asked_for(stream, count):
    assert stream.normals("noise", 0, count).shape == (count,)
    assert stream.uniforms("lots", 0, count).shape == (count,)
    assert stream.sampled(0, count, 0.5).shape == (count,)


def test_uniforms_are_uniform_in_the_half_open_interval(stream):
    uniforms = stream.uniforms("lots", 0, 200_000)
    assert uniforms.dtype == np.float64
    assert 0 <= uniforms.min() <= uniforms.max() < 1
    assert stats.kstest(uniforms, "uniform").pvalue > 0.001


def test_the_largest_word_is_below_one():
    assert noise._unit(np.array([2**64 - 1], dtype=np.uint64))[0] == 1 - 2**-53


@pytest.mark.parametrize("rate", [0.001, 0.064, 0.5, 0.999])
def test_patients_are_sampled_at_the_rate(stream, rate):
    taken = stream.sampled(3, MILLION, rate).sum()
    assert abs(taken - rate * MILLION) < 5 * np.sqrt(MILLION * rate * (1 - rate))


def test_rate_0_takes_nobody_and_rate_1_everybody(stream):
    assert not stream.sampled(0, 10_000, 0.0).any()
    assert stream.sampled(0, 10_000, 1.0).all()


def test_a_patient_is_sampled_in_one_step_whatever_happened_in_another(stream):
    now, before = (stream.sampled(step, MILLION, 0.5).astype(float) * 2 - 1 for step in (8, 7))
    assert correlation_in_sigmas(now, before) < 5  # of independent signs: the same law as of normals


def test_a_higher_rate_takes_the_same_patients_and_more(stream):
    assert (stream.sampled(0, 10_000, 0.2) <= stream.sampled(0, 10_000, 0.3)).all()


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_impossible_rates_are_an_error(stream, rate):
    with pytest.raises(ValueError, match="rate"):
        stream.sampled(0, 10, rate)


@pytest.mark.parametrize("step", [-1, 2**64])
def test_impossible_steps_are_an_error(stream, step):
    with pytest.raises(ValueError, match="step"):
        stream.normals("noise", step, 10)


@pytest.mark.parametrize("count", [-1, 2**31 + 1])
def test_impossible_counts_are_an_error(stream, count):
    for draw in (stream.normals, stream.uniforms):
        with pytest.raises(ValueError, match="draw"):
            draw("noise", 0, count)
    with pytest.raises(ValueError, match="draw"):
        stream.sampled(0, count, 0.5)


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_a_secret_has_32_bytes(secret):
    with pytest.raises(ValueError, match="32 bytes"):
        SecretStream(secret)


def test_the_secret_is_not_shown(stream):
    shown = repr(stream) + str(stream) + stream.text_seed() + commitment(SECRET)
    assert SECRET.hex() not in shown
    assert repr(SECRET) not in shown
    with pytest.raises(TypeError):
        pickle.dumps(stream)


def test_the_text_seed_is_a_function_of_the_secret_and_no_key_of_a_stream(stream):
    assert stream.text_seed() == SecretStream(SECRET).text_seed()
    assert stream.text_seed() != SecretStream(bytes(32)).text_seed()
    assert len(bytes.fromhex(stream.text_seed())) == 32
    assert stream.text_seed() != noise._derived(SECRET, "stream", "text_seed").hex()


def test_secrets_are_fresh_and_long_enough():
    first, second = new_secret(), new_secret()
    assert len(first) == len(second) == 32
    assert first != second


def test_a_commitment_is_a_hash_with_a_prefix_of_its_own():
    assert commitment(SECRET) == hashlib.sha256(b"multimix noise commitment\n" + SECRET).hexdigest()
    assert commitment(SECRET) != hashlib.sha256(SECRET).hexdigest()
