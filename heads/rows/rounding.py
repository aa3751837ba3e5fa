"""Stochastic rounding to bfloat16: up or down with the probabilities that keep the expectation.

Rounding to the nearest value loses every update smaller than half a step of bfloat16, 2^-9 of the row. Stochastic
rounding applies it on average.
"""

import torch
from torch import Tensor

from ..core import counter_rng


def stochastic(values: Tensor, ids: Tensor, *key: int) -> Tensor:
    """Round float32 (k, width) to bfloat16; values that bfloat16 represents exactly do not change.

    Args:
        values: numbers to round.
        ids: int64 (k,), an id of each row.
        key: seed, step and so on. The draw of a row depends on key and id, not on the other rows.
    """
    bits = values.view(torch.int32) + counter_rng.uniform16(ids, values.shape[1], "rounding", *key)
    # Uniform over 0 .. 2^16 - 1 in units of the lowest float32 bit, then cut to the upper 16 bits.
    bits.add_(1 << 15).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)
