"""Fidelity of a head without class centers: its loss compared with a full softmax over the classes' mean embeddings.

The negatives of such a head are not the class means, so its figures cannot reach 1. Mass and recall are
comparable with those of `selection_fidelity`: a class counts as selected if the head holds it, although the head's
vector for the class is not its mean. The gradient is that of another loss. Its cosine states how well it agrees with
that of a full head over class means. The ratio of lengths includes the head's own weights, such as those of FFC, which
counts a probe twice. Nothing is drawn at random, so there is no bias and no variance.

Legend: n batch of this process, Q embeddings, D embedding size, k hardest negatives.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..group.batch import GlobalBatch, directions, gather
from ..group.collectives import gather_rows, gather_sizes, rank_and_size
from ..group.sharding import Shard
from ..margins.class_counts import ClassCounts, checked_counts
from ..margins.margin import Margin
from ..objectives.inputs import LossInputs
from ..objectives.loss_state import LossState
from ..objectives.rows import DenseRows
from ..objectives.softmax import CrossEntropy
from ..selection.selection import Selection
from .figures import check_options, compare_gradients, evenly_spaced
from .reference import FullLoss


def loss_fidelity(
    loss: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    *,
    means: Tensor,
    held: Tensor,
    num_classes: int,
    margin: Margin,
    class_counts: ClassCounts = None,
    group: ProcessGroup | None = None,
    probes: int = 32,
    hardest: int = 10,
) -> dict[str, float]:
    """Compare the loss of a head without class centers with the full softmax over the classes' mean embeddings.

    Mass and recall are comparable with those of `selection_fidelity`; the gradient is that of another loss. See
    `help(heads.fidelity.loss)` for its meaning. All processes must call the function together.

    Args:
        loss: loss of the training step, before its backward pass.
        embeddings: (n, D) of this process, from which `loss` was computed.
        labels: (n,) integer class ids.
        means: (classes of this process's shard, D), mean embeddings.
        held: int64 ids of all classes that the head compares embeddings with.
        num_classes: C.
        margin: a margin that normalizes, without schedules: margin.at(step).
        class_counts: (C,) number of training examples of each class, for a margin that depends on it.
        group: the processes that share the classes; None for one process.
        probes: number of embeddings to evaluate.
        hardest: k, the number of hardest negatives in `hardest_recall`.

    Returns:
        mass, hardest_recall: as in `selection_fidelity`.
        class_means_cosine, class_means_norm_ratio: cosine and ratio of lengths of this gradient and the exact one.

    Raises:
        ValueError: a margin that does not normalize or has schedules, or an option that is not a whole number of at
            least 1.
    """
    probes, _, hardest = check_options(probes, 1, hardest)
    if not margin.normalize:
        raise ValueError(
            f"margin={margin} must normalize, since class means have a direction only; use a margin such as CosFace()"
        )
    if margin.schedules:
        raise ValueError(f"margin={margin} has schedules; pass margin.at(step), its values at the step of the loss")
    counts = checked_counts(class_counts, margin, num_classes)
    shard = Shard(num_classes, *rank_and_size(group))
    assert len(means) == shard.size
    (gradient_nD,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        gradient_QD, batch = _gather_probes(gradient_nD, embeddings, labels, group, probes)
        rows = DenseRows(means.to(batch.x_ND))
        inputs = LossInputs(
            x_ND=batch.x_ND,
            weight_N=batch.weight_N,
            position_P=shard.local(batch.positives.labels_P),
            positives=batch.positives,
            rows=rows,
            margin=margin,
            batch=LossState(num_classes, batch.x_ND, None, counts).margin_batch(
                margin, batch.norm_N, batch.positives, key=(0,)
            ),
            group=group,
        )
        exact = FullLoss(CrossEntropy(), inputs, hardest)
        return _figures(exact, gradient_QD, rows, shard.local(held.to(batch.x_ND.device)))


def _figures(exact: FullLoss, gradient_QD: Tensor, rows: DenseRows, held: Tensor) -> dict[str, float]:
    """Return the figures for held rows of the shard; -1 for classes of other shards."""
    ids = held[held >= 0].sort().values
    selection = Selection(ids)
    gradients = compare_gradients(gradient_QD[None], exact.gradient_QD)
    return {
        "mass": float(exact.mass(rows.subset(ids), selection).mean()),
        "hardest_recall": float(exact.recall(selection).mean()),
        "class_means_cosine": gradients["gradient_cosine"],
        "class_means_norm_ratio": gradients["gradient_norm_ratio"],
    }


def _gather_probes(
    gradient_nD: Tensor, embeddings: Tensor, labels: Tensor, group: ProcessGroup | None, probes: int
) -> tuple[Tensor, GlobalBatch]:
    """Return gradients (Q, D), and the batch with unit embeddings, of evenly spaced samples of all processes."""
    x_nD = directions(embeddings.float())
    # The gradient of unit embeddings. That of each process is multiplied by the number of processes.
    norm_n = embeddings.float().norm(dim=1)
    gradient_nD = gradient_nD.float() * norm_n[:, None] / rank_and_size(group)[1]
    sizes = gather_sizes(len(x_nD), x_nD.device, group)
    batch = gather(x_nD, norm_n, labels, None, sizes, group)
    chosen = evenly_spaced(len(batch.x_ND), probes)
    # Scaled from a mean over N samples to one over Q, as the exact gradient is.
    gradient_QD = gather_rows(gradient_nD, sizes, group)[chosen] * (len(batch.x_ND) / len(chosen))
    return gradient_QD, batch.chosen(chosen)
