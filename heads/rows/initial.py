"""The initial class rows, drawn from N(0, 0.01)."""

from functools import lru_cache

import torch
from torch import Tensor

from ..core import counter_rng

INIT_STD = 0.01


def initial_rows(classes: Tensor, embedding_size: int, seed: int) -> Tensor:
    """Draw the initial rows of classes, without the bias.

    Args:
        classes: int64 (k,) global class ids. A row depends on its class and on `seed` only.
        embedding_size: columns.
        seed: seed of the draw.

    Returns:
        float32 (k, embedding_size).
    """
    draws = counter_rng.uniform16(classes, embedding_size, "initialisation", seed)
    places = draws.to(torch.int32).add_(1 << 15)
    return normal_quantiles(classes.device).index_select(0, places.reshape(-1)).view(places.shape)


def initial_blocks(
    classes: Tensor, embedding_size: int, seed: int, *, rows_per_class: int, bias: float | None, like: Tensor
) -> Tensor:
    """Return the initial rows of classes, one line a class (k, rows_per_class x width).

    Args:
        classes, embedding_size, seed: as in `initial_rows`.
        rows_per_class: rows of a class.
        bias: initial value of one more column of each row; None for no such column.
        like: a tensor with the dtype and device of the result.
    """
    numbers = classes[:, None] * rows_per_class + torch.arange(rows_per_class, device=classes.device)
    rows = initial_rows(numbers.flatten(), embedding_size, seed).to(like)
    if bias is not None:
        rows = torch.nn.functional.pad(rows, (0, 1), value=bias)
    return rows.view(len(classes), -1)


@lru_cache
@torch.inference_mode(False)
def normal_quantiles(device: torch.device) -> Tensor:
    """Return N(0, 0.01) as 2^16 equally likely values: the quantiles in the middle of 2^16 intervals, float32."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles = torch.special.ndtri(middles)
    return (INIT_STD * quantiles / quantiles.square().mean().sqrt()).float().to(device)
