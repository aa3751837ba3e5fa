"""Counter-based random numbers and permutations: computed from a key, without storage and in any order.

All functions are vectorised over uint64 arrays of numpy. The mixing function is the finaliser of SplitMix64
(Steele et al., OOPSLA 2014).
"""

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]
_STEP = 0x9E3779B97F4A7C15
_STEP_64 = np.uint64(_STEP)
_MASK = 2**64 - 1


def mix(x: U64) -> U64:
    """Return 64 well mixed bits for each number."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix_one(x: int) -> int:
    """Return `mix` of one Python number; numpy would be slower and warn about overflow."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def hash64(purpose: str, *parts: ArrayLike) -> U64:
    """Return 64 random bits for each combination of the broadcast integer parts."""
    one, rest = zlib.crc32(purpose.encode()), list(parts)
    while rest and np.ndim(rest[0]) == 0:
        number = int(rest.pop(0))  # type: ignore[call-overload, arg-type]
        one = mix_one(((one + _STEP) & _MASK) ^ mix_one((number + _STEP) & _MASK))
    x = np.full((1,) * max(map(np.ndim, rest), default=0), one, dtype=np.uint64)
    for part in rest:
        x = mix((x + _STEP_64) ^ mix(np.atleast_1d(part).astype(np.uint64) + _STEP_64))
    return x


def uniforms(purpose: str, *parts: ArrayLike) -> NDArray[np.float64]:
    """Return a uniform number in (0, 1) for each combination of the broadcast parts."""
    return ((hash64(purpose, *parts) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(purpose: str, *parts: ArrayLike) -> NDArray[np.float32]:
    """Return a standard normal number for each combination of the broadcast parts, by Box-Muller on one hash."""
    bits = hash64(purpose, *parts)
    radius = ((bits >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
    return np.sqrt(np.float32(-2) * np.log(radius)) * np.cos(angle)


def permute(index: ArrayLike, size: int, *key: int) -> NDArray[np.int64]:
    """Return the images of indices under a keyed permutation of 0 .. size - 1, without storage.

    The permutation is a four-round Feistel network on the next even number of bits. A value outside the range follows
    its cycle until it is inside.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    x = np.asarray(index).astype(np.uint64)
    outside = np.ones(x.shape, dtype=bool)
    while outside.any():
        left, right = x[outside] >> half, x[outside] & mask
        for round_number in range(4):
            left, right = right, left ^ (hash64("permute", *key, round_number, right) & mask)
        x[outside] = (left << half) | right
        outside = x >= np.uint64(size)
    return x.astype(np.int64)
