"""Random streams keyed by what they are for, never consumed in order.

Every draw is a function of (seed, site, round, step, patient, purpose), so that the order in which sites or
images are processed, a resume, or the number of worker processes cannot change a result. Streams are Philox
(counter-based; Salmon et al. 2011, doi:10.1145/2063384.2063405) keyed by a BLAKE2b hash of the key.

Never use these for differential privacy: who knows the seed can subtract the noise.
"""

import hashlib
import json

import numpy as np

Key = str | int


def derive_seed(*key: Key) -> int:
    """Return a 63-bit seed for the key; equal keys give equal seeds, on every machine."""
    text = json.dumps(key, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(*key: Key) -> np.random.Generator:
    """Return a fresh generator for the key."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*key)))
