"""Random draws that are keyed, not carried.

A draw depends on what it is for (seed, purpose, step, first class, ...) and on nothing drawn before,
so that resuming needs no generator state and the number of processes changes no initial row.
"""

import zlib

import numpy as np
import torch


def generator(purpose: str, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for (purpose, key); equal keys give equal draws on the same kind of device."""
    words = np.random.SeedSequence([zlib.crc32(purpose.encode()), *key]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0] >> np.uint64(1)))
