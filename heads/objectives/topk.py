"""The rows of highest cosine, streamed a chunk at a time."""

import torch
from torch import Tensor

from .rows import MIN_NORM, RowSequence
from .softmax import chunks


def streamed_topk(x_ND: Tensor, rows: RowSequence, k: int, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """The k rows of highest cosine (inner product without `normalize`): values and positions, (N, min(k, K))."""
    values = x_ND.new_empty((len(x_ND), 0))
    positions = torch.empty((len(x_ND), 0), dtype=torch.int64, device=x_ND.device)
    for a, b in chunks(len(rows)):
        rows_kD = rows.slice(a, b)
        scores_Nk = x_ND @ (torch.nn.functional.normalize(rows_kD, eps=MIN_NORM) if normalize else rows_kD).T
        values = torch.cat([values, scores_Nk], dim=1)
        here = torch.arange(a, b, device=x_ND.device).expand(len(x_ND), -1)
        positions = torch.cat([positions, here], dim=1)
        values, best = values.topk(min(k, values.shape[1]), dim=1)
        positions = positions.gather(1, best)
    return values, positions
