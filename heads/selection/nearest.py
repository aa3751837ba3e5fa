"""The order in which nearest classes become active."""

import torch
from torch import Tensor


def nearest_first(nearest_Nk: Tensor, positives: Tensor, count: int) -> Tensor:
    """Return at most `count` distinct classes: all nearest neighbours, then all second nearest, and so on.

    Args:
        nearest_Nk: int64, the neighbours of each query, nearest first; -1 for missing ones.
        positives: int64, classes that are left out.
        count: number of classes.
    """
    ids = nearest_Nk.T.flatten()
    ids = ids[(ids >= 0) & ~torch.isin(ids, positives)]
    distinct, group = torch.unique(ids, return_inverse=True)
    order = torch.arange(len(ids), device=ids.device)
    first = torch.full_like(distinct, len(ids)).scatter_reduce_(0, group, order, "amin")
    return distinct[first.argsort()[:count]]
