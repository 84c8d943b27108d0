"""Randomness for privacy: noise and patient sampling from one 256-bit secret, expanded with ChaCha20 (RFC 8439).

Who knows the secret can subtract the noise: it comes from the operating system, never from a seed that a server knows,
and what is random but not private gets `text_seed` instead. Draws are a function of (secret, purpose, step),
whatever else was drawn before, so that a step can be repeated by an auditor who holds the secret.

Not covered: floating-point attacks (Mironov 2012, doi:10.1145/2382196.2382264). Normals are float64 made from 53-bit
uniforms, so some values can never occur and none lies beyond 8.6 standard deviations (probability 1e-17 a draw); noise
is added in float64 and rounded to float32. The proofs are for real numbers. Last digits of sine, cosine and
logarithm may differ between processors.
"""

import hashlib
import math
import secrets
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

SECRET_BYTES: Final = 32
_MOST_WORDS: Final = 2**31  # 16 GiB of a stream's 256 GiB, after which the block counter would run into the nonce
_MOST_STEPS: Final = 2**64
_CHUNK: Final = 1 << 14  # normals made at a time: what fits into the cache is nearly twice as fast

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


class SecretStream:
    """Independent streams of random numbers, one for each kind of draw, purpose and step.

    A stream always starts from its beginning: draw each (purpose, step) once, or the same noise is used twice.
    """

    def __init__(self, secret: bytes) -> None:
        """Raise `ValueError` unless the secret has 32 bytes."""
        if len(secret) != SECRET_BYTES:
            raise ValueError("a secret has 32 bytes")
        self._secret = bytes(secret)

    def __repr__(self) -> str:
        return "SecretStream(...)"  # nothing of the secret, which a traceback or a log could show

    def __reduce__(self) -> Any:
        raise TypeError("a secret stream is not written anywhere")

    def normals(self, purpose: str, step: int, count: int) -> Floats:
        """Return `count` standard normals, float64: Box and Muller 1958 (doi:10.1214/aoms/1177706645)."""
        stream = self._stream("normals", purpose, step)
        normals = np.empty(_checked(count) + count % 2)
        for start in range(0, len(normals), _CHUNK):
            part = normals[start : start + _CHUNK]
            _box_muller(_words(stream, len(part)), part)
        return normals[:count]

    def uniforms(self, purpose: str, step: int, count: int) -> Floats:
        """Return `count` multiples of 2^-53 in [0, 1), float64."""
        return _unit(_words(self._stream("uniforms", purpose, step), _checked(count)))

    def sampled(self, step: int, count: int, rate: float) -> npt.NDArray[np.bool_]:
        """Return for each of `count` patients whether a step takes it: Poisson sampling, each on its own.

        The probability is `rate`, rounded down to a multiple of 2^-64. Raises `ValueError` for a rate outside 0 to 1.
        """
        if not 0 <= rate <= 1:
            raise ValueError("a sampling rate is between 0 and 1")
        words = _words(self._stream("sampled", "patients", step), _checked(count))
        below = int(rate * 2.0**64)  # exact: a power of two moves the exponent only
        return words < np.uint64(below) if below < 2**64 else np.ones(count, dtype=bool)

    def text_seed(self) -> str:
        """Return 64 hexadecimal digits for the keyed streams of `multimix.randomness`: augmentation, dropout.

        Without the secret they look random, and the secret cannot be computed from them.
        """
        return _derived(self._secret, "text_seed").hex()

    def _stream(self, kind: str, purpose: str, step: int) -> CipherContext:
        """Return a stream of its own: the key is of the kind and purpose, the nonce is the step."""
        if not 0 <= step < _MOST_STEPS:
            raise ValueError("a step is a number from 0 to 2^64 - 1")
        return _chacha20(_derived(self._secret, "stream", kind, purpose), step.to_bytes(12, "little"))


def new_secret() -> bytes:
    """Return 32 bytes of the operating system's generator."""
    return secrets.token_bytes(SECRET_BYTES)


def commitment(secret: bytes) -> str:
    """Return the SHA-256 that binds a ledger to a secret without showing it, in hexadecimal."""
    return hashlib.sha256(b"multimix noise commitment\n" + secret).hexdigest()


def _derived(secret: bytes, *what: str) -> bytes:
    """Return a key of its own for each use: BLAKE2b keyed with the secret, over the lengths and texts."""
    texts = [text.encode() for text in what]
    message = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    return hashlib.blake2b(message, key=secret, digest_size=32, person=b"multimix noise").digest()


def _chacha20(key: bytes, nonce: bytes, *, block: int = 0) -> CipherContext:
    """Return ChaCha20 from a block of 64 bytes on; the nonce has 96 bits as in RFC 8439."""
    return Cipher(ChaCha20(key, block.to_bytes(4, "little") + nonce), mode=None).encryptor()


def _words(stream: CipherContext, count: int) -> Words:
    """Return the next 64-bit integers of a stream: what it makes of zeros."""
    return np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8")


def _unit(words: Words) -> Floats:
    return np.asarray((words >> np.uint64(11)) * 2.0**-53)


def _box_muller(words: Words, out: Floats) -> None:
    """Write as many normals as words: the first half of the words are radii, the second angles."""
    half = len(words) // 2
    uniforms = _unit(words)
    radii, angles = uniforms[:half], uniforms[half:]
    np.subtract(1, radii, out=radii)  # in (0, 1], so that the logarithm is finite
    np.log(radii, out=radii)
    radii *= -2
    np.sqrt(radii, out=radii)
    angles *= 2 * math.pi
    np.multiply(radii, np.cos(angles), out=out[:half])
    np.multiply(radii, np.sin(angles), out=out[half:])


def _checked(count: int) -> int:
    if not 0 <= count <= _MOST_WORDS:
        raise ValueError("a draw has 0 to 2^31 numbers")
    return count
