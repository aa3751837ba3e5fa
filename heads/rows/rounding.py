"""Stochastic rounding to bfloat16: up or down with the probabilities that keep the expectation.

An update smaller than half a step of bfloat16, 2^-9 of the row, would never arrive under rounding to
the nearest; so it does on average.
"""

import torch
from torch import Tensor

from ..core import counter_rng


def stochastic(values: Tensor, ids: Tensor, *key: int) -> Tensor:
    """float32 (k, width) -> bfloat16; values that bfloat16 holds stay as they are.

    Args:
        ids: int64 (k,) the draw of a row depends on its id and
        key: on these numbers, not on what else is rounded.
    """
    bits = values.view(torch.int32) + counter_rng.uniform16(ids, values.shape[1], "rounding", *key)
    # Uniform over 0 .. 2^16 - 1 in units of the lowest float32 bit, then cut to the upper 16 bits.
    bits.add_(1 << 15).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)
