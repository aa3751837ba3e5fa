"""Counter-based random numbers: a draw is a function of a key, not of earlier draws.

The key holds purpose, seed, step, class and so on. Resuming therefore needs no generator state, and the number of
processes does not change the initial rows.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

# An odd constant for indices, and the constants of lowbias32 (C. Wellons, "Prospecting for hash functions", 2018).
GOLDEN, FIRST, SECOND = (int(np.uint32(c).astype(np.int32)) for c in (0x9E3779B1, 0x7FEB352D, 0x846CA68B))


def generator(purpose: str, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for (purpose, key); equal keys give equal draws on the same kind of device."""
    seed = _sequence(purpose, key).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator(device).manual_seed(int(seed))


def uniform16(ids: Tensor, width: int, purpose: str, *key: int) -> Tensor:
    """Draw uniformly from all int16 values, independently of the other ids and of the device.

    The draws are hashes: two 32-bit keys from an id and one from the column, mixed by two multiplications. Each 32-bit
    word gives two columns.

    Args:
        ids: int64 (k,), one row each.
        width: columns.
        purpose, key: as in `generator`.

    Returns:
        int16 (k, width).
    """
    words = _sequence(purpose, key).generate_state(4, np.uint32).astype(np.int32).tolist()
    low, high = ids.to(torch.int32), (ids >> 32).to(torch.int32)
    first_k = _mixed(low ^ words[0]) + high * GOLDEN
    second_k = _mixed(low * GOLDEN + words[1]) ^ _mixed(high + words[2])
    column = torch.arange(-(-width // 2), dtype=torch.int32, device=ids.device)
    word_kd = _mixed(column * GOLDEN + words[3]) ^ first_k[:, None]
    word_kd.mul_(FIRST)
    _fold(word_kd, 15)
    word_kd.add_(second_k[:, None]).mul_(SECOND)
    _fold(word_kd, 16)
    return word_kd.view(torch.int16)[:, :width]


def words(count: int, purpose: str, *key: int) -> list[int]:
    """Return 32-bit words for (purpose, key), as signed integers: keys of `hashed`."""
    drawn: list[int] = _sequence(purpose, key).generate_state(count, np.uint32).astype(np.int32).tolist()
    return drawn


def hashed(numbers: Tensor, word: int) -> Tensor:
    """Return a hash of numbers in [0, 2^31) and a word, int64 in [0, 2^31)."""
    return _mixed(_mixed(numbers.to(torch.int32) ^ word) * GOLDEN + word).bitwise_and_(0x7FFFFFFF).to(torch.int64)


def _mixed(word: Tensor) -> Tensor:
    _fold(word, 16)
    word.mul_(FIRST)
    _fold(word, 15)
    word.mul_(SECOND)
    return _fold(word, 16)


def _fold(word: Tensor, shift: int) -> Tensor:
    """Compute word ^= word >> shift in place; the mask removes the sign bits that the shift of an int32 adds."""
    return word.bitwise_xor_(word.bitwise_right_shift(shift).bitwise_and_((1 << (32 - shift)) - 1))


def _sequence(purpose: str, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([zlib.crc32(purpose.encode()), *key])
