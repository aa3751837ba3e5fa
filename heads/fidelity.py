"""How much of the exact softmax a selection of classes keeps, on a few embeddings, against all class centers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from .centers import ActiveRows, ClassCenters
from .collectives import max_over_processes, sum_over_processes
from .margins import Margin
from .softmax import MIN_NORM, chunks


@dataclass(frozen=True)
class Coverage:
    """
    Attributes:
        mass_Q: share of each embedding's negative softmax mass that the active classes of all processes hold.
        perfect_Q: the same if its `nearest_Qk` had been active besides.
        nearest_Qk: its nearest classes of this shard, exactly, without its own; rows of the shard.
    """

    mass_Q: Tensor
    perfect_Q: Tensor
    nearest_Qk: Tensor


@torch.no_grad()
def coverage(
    x_QD: Tensor,
    labels_Q: Tensor,
    centers: ClassCenters,
    margin: Margin,
    ids: Tensor,
    *,
    k: int = 0,
    group: ProcessGroup | None = None,
) -> Coverage:
    """Streams all rows of the shard past Q embeddings once: Q C D multiplications.

    Args:
        x_QD: the same on all processes, of unit length where the margin normalizes.
        labels_Q: their classes.
        ids: the active rows of this shard.
        k: how many nearest classes of this shard to find.
    """
    rows = ActiveRows(centers, None, keep=False)
    k = min(k, max(len(rows) - 1, 0))
    active_K = torch.zeros(len(rows), dtype=torch.bool, device=x_QD.device)
    active_K[ids] = True
    local_Q = centers.shard.local(labels_Q)
    here = (local_Q >= 0).nonzero()[:, 0]
    target_cos_Q = x_QD.new_zeros(len(x_QD))
    target_cos_Q[here] = (x_QD[here] * _unit(rows.at(local_Q[here]), margin)).sum(1)
    target_cos_Q = sum_over_processes(target_cos_Q, group)

    max_Q = torch.full_like(target_cos_Q, torch.finfo(x_QD.dtype).min)
    all_Q, active_Q = torch.zeros_like(max_Q), torch.zeros_like(max_Q)
    top_Qk, nearest_Qk = x_QD.new_empty(len(x_QD), 0), local_Q.new_empty(len(x_QD), 0)
    for a, b in chunks(len(rows)):
        logits_kQ = margin.negative_logits(_unit(rows.stretch(a, b), margin) @ x_QD.T, target_cos_Q)
        own = here[(local_Q[here] >= a) & (local_Q[here] < b)]
        logits_kQ[local_Q[own] - a, own] = -torch.inf
        new_max_Q = torch.maximum(max_Q, logits_kQ.amax(0))
        exp_kQ, fade_Q = (logits_kQ - new_max_Q).exp_(), (max_Q - new_max_Q).exp_()
        all_Q = all_Q * fade_Q + exp_kQ.sum(0)
        active_Q = active_Q * fade_Q + exp_kQ[active_K[a:b]].sum(0)
        max_Q = new_max_Q
        positions = torch.arange(a, b, device=x_QD.device).expand(len(x_QD), -1)
        merged = torch.cat([top_Qk, logits_kQ.T], dim=1)
        top_Qk, best = merged.topk(min(k, merged.shape[1]), dim=1)
        nearest_Qk = torch.cat([nearest_Qk, positions], dim=1).gather(1, best)

    highest_Q = max_over_processes(max_Q.clone(), group)
    exp_Qk = (top_Qk - highest_Q[:, None]).exp_()
    missed_Q = (exp_Qk * ~active_K[nearest_Qk]).sum(1)
    sums = torch.stack([all_Q, active_Q]) * (max_Q - highest_Q).exp()
    all_Q, active_Q, missed_Q = sum_over_processes(torch.cat([sums, missed_Q[None]]), group)
    return Coverage(active_Q / all_Q, (active_Q + missed_Q) / all_Q, nearest_Qk)


def _unit(rows: Tensor, margin: Margin) -> Tensor:
    return normalize(rows, eps=MIN_NORM) if margin.normalize else rows
