"""The loss of probes against a pool of features, with its gradient.

Legend: n probes of this process, i those whose class is in the pool, o the others, k nearest features, D embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from ..group.collectives import rank_and_size, sum_over_processes
from ..group.positives import Positives
from ..margins.batch import MarginBatch
from ..margins.margin import Margin
from ..objectives.autograd import with_known_gradients
from ..objectives.inputs import LossInputs
from ..objectives.rows import MIN_NORM
from ..objectives.softmax import MarginSoftmax
from ..objectives.topk import streamed_topk
from .rows import PoolRows


def pool_loss(
    x_nD: Tensor,
    norm_n: Tensor,
    slot_n: Tensor,
    views: Sequence[PoolRows],
    *,
    margin: Margin,
    batch: MarginBatch,
    outlier_weight: float,
    num_nearest: int,
    group: ProcessGroup | None,
) -> Tensor:
    """Return the loss over the probes of all processes, a scalar.

    It is the mean margin softmax loss of the probes whose class is in the pool, summed over the views, plus
    `outlier_weight` times the mean of `nearest_term` of the others. A mean over no probes is 0. If the probes
    require a gradient, it is computed here, and multiplied by the number of processes, by which DDP divides.

    Args:
        x_nD: (n, D) probes of this process at unit length.
        norm_n: (n,) their lengths before.
        slot_n: (n,) slot of each probe's class; -1 if it is not in the pool.
        views: the pool's rows.
        margin: a margin that normalizes and does not need the whole batch.
        batch: what the margin may read of the probes of this process.
        outlier_weight: weight of the second term.
        num_nearest: k.
        group: the processes that share the batch.
    """
    wanted, probes, lengths = x_nD.requires_grad, x_nD, norm_n
    x_nD = x_nD.detach()
    inside, outside = (mask_n.nonzero()[:, 0].to(x_nD.device) for mask_n in (slot_n >= 0, slot_n < 0))
    slot_i = slot_n[slot_n >= 0]
    sums = x_nD.new_tensor([0.0, 0.0, len(inside), len(outside)])
    gradients = [torch.zeros_like(x_nD), torch.zeros_like(x_nD)]
    norm_gradient_n = torch.zeros_like(batch.norm_N)
    batch = batch.chosen(inside)
    for rows in views:
        if len(inside):
            weight = x_nD.new_ones(len(inside))
            softmax = MarginSoftmax(
                LossInputs(
                    x_ND=x_nD[inside],
                    weight_N=weight,
                    positives=Positives(batch.labels_N),
                    position_P=slot_i,
                    rows=rows,
                    margin=margin,
                    batch=batch,
                )
            )
            sums[0] += softmax.loss(keep=wanted) * len(inside)
            if wanted:
                gradient = softmax.backward(x_nD.new_tensor(float(len(inside))))
                gradients[0][inside] += gradient.x_ND
                if gradient.norm_N is not None:
                    norm_gradient_n[inside] += gradient.norm_N
        if len(outside) and len(rows) and outlier_weight:
            term, gradient_oD = nearest_term(x_nD[outside], rows, num_nearest)
            sums[1] += term
            gradients[1][outside] += gradient_oD
    sums = sum_over_processes(sums, group)
    scale = torch.stack([1 / sums[2].clamp(min=1), outlier_weight / sums[3].clamp(min=1)])
    loss, world_size = torch.dot(sums[:2], scale), rank_and_size(group)[1]
    if not wanted:
        return loss
    gradient_nD = (gradients[0] * scale[0] + gradients[1] * scale[1]) * world_size
    norm_gradient_n *= scale[0] * world_size
    return with_known_gradients(loss, [(probes, gradient_nD), (lengths, norm_gradient_n)])


def nearest_term(x_oD: Tensor, rows: PoolRows, num_nearest: int) -> tuple[Tensor, Tensor]:
    """Return the sum over probes of the mean of their highest cosines, negative ones as 0, and its gradient (o, D)."""
    _, positions = streamed_topk(x_oD, rows, num_nearest, normalize=True)
    near_okD = normalize(rows.gather(positions.flatten()), eps=MIN_NORM).view(*positions.shape, -1)
    cos_ok = torch.einsum("od,okd->ok", x_oD, near_okD)
    share = (cos_ok > 0).to(x_oD.dtype) / positions.shape[1]
    return (cos_ok * share).sum(), torch.einsum("ok,okd->od", share, near_okD)
