"""`bench=topk`: search of the exact nearest classes of a batch, compared with the matrix product alone."""

from functools import partial
from itertools import product
from typing import Any

import torch

from heads import FullFC

from .measure import median_and_spread, ratio, timed
from .rates import products


def topk(
    num_classes: list[int], embedding_size: list[int], batch: int, k: int, warmup: int, repeats: int
) -> list[dict[str, Any]]:
    """Return a line for each size. `over_floor` is the time relative to that of the product."""
    lines = []
    for C, D in product(map(int, num_classes), embedding_size):
        head, embeddings = FullFC(C, D), torch.randn(batch, D)
        floor = products(C, batch, D, 1, "cpu")
        ours, alone = [], []
        for repeat in range(warmup + repeats):
            topk_ms = timed(partial(head.topk, embeddings, k))[0]
            product_alone = timed(floor)[0]
            if repeat >= warmup:
                ours.append(topk_ms)
                alone.append(product_alone)
        milliseconds, spread = median_and_spread(ours)
        lines.append(
            {
                "num_classes": C,
                "embedding_size": D,
                "batch": batch,
                "k": k,
                "step_ms": milliseconds,
                "spread_ms": spread,
                "over_floor": ratio(ours, alone),
            }
        )
    return lines
