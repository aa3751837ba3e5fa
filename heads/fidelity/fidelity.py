"""How much of the exact softmax a head keeps, on a few embeddings: of its mass, and of the gradient it gives them.

A head with class centers is held against the full head on the same centers, in selections drawn anew
(`selection_fidelity`). A head without them is held against a full head whose centers are the mean embeddings of the
classes (`loss_fidelity`): its own negatives are other vectors, so that it cannot reach 1.

Legend: Q embeddings, D row width, k hardest negatives, R repeated selections.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..center_head import CenterHead
from ..core.timer import Timer
from ..group.batch import directions, gather
from ..group.collectives import gather_rows, gather_sizes, rank_and_size
from ..group.sharding import Shard
from ..margins.margin import Margin
from ..objectives.rows import DenseRows
from ..objectives.softmax import MarginSoftmax
from ..rows.active import ActiveRows
from ..selection.selection import Selection
from .full_softmax import FullSoftmax, direction

FIRST_REPEAT = 1 << 20  # no training has that many micro-batches: the keys of draws that are only looked at


def selection_fidelity(
    head: CenterHead, embeddings: Tensor, labels: Tensor, *, probes: int = 32, repeats: int = 4, hardest: int = 10
) -> dict[str, float]:
    """Holds the selections of a head against all its classes. Changes nothing that training sees.

    Args:
        embeddings: (n, D) of this process, as in training; n may differ between processes.
        labels: (n,) class ids.
        probes: the classes are selected for all embeddings of all processes, and so many of these are looked at.
        repeats: R, selections drawn anew for them.
        hardest: k.

    Returns:
        Means over selections, the same on all processes. Gradients are those of all embeddings together, one vector,
        along the sphere where the margin normalizes.
        mass: share of the negatives' softmax that the selected classes hold; the mean over embeddings.
        hardest_recall: of the k negatives with the highest logits, the share that is selected; likewise.
        gradient_cosine: between the gradient and the exact one.
        gradient_norm_ratio: of their lengths.
        gradient_bias: distance of the mean gradient over the selections from the exact one, over the length of that,
            corrected for the noise of a mean of R. Given for R > 1.
        gradient_variance: of the gradients over the selections, over the square of the exact one's length. The mean
            square error is bias squared plus variance.

    Raises:
        ValueError: as `CenterHead.forward`; options out of range.
    """
    check_options(probes, repeats, hardest)
    group, device = head.process_group, head.centers.like.device
    # Margins are differentiated, which inference mode does not allow.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        _in_other_draws(head),
    ):
        batch = head.gather_batch(embeddings, labels)
        chosen = spread_over(len(batch.x_ND), probes)
        x_QD, labels_Q = batch.x_ND[chosen], batch.labels_N[chosen]
        everything = ActiveRows(head.centers, None, keep=False)
        exact = FullSoftmax(x_QD, labels_Q, everything, head.centers.shard, head.margin, group, hardest)
        masses, recalls, gradients = [], [], []
        for repeat in range(repeats):
            head.micro_batch = FIRST_REPEAT + repeat
            selection = head.select_classes(batch.x_ND, batch.labels_N)
            rows = ActiveRows(head.centers, selection.ids, keep=False)
            masses.append(exact.mass(rows, selection.ids))
            recalls.append(exact.recall(selection.ids))
            gradients.append(_gradient(head, exact, rows, selection))
        return {
            "mass": float(torch.stack(masses).mean()),
            "hardest_recall": float(torch.stack(recalls).mean()),
            **compared(torch.stack(gradients), exact.gradient_QD),
        }


def loss_fidelity(
    loss: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    *,
    means: Tensor,
    held: Tensor,
    num_classes: int,
    margin: Margin,
    group: ProcessGroup | None = None,
    probes: int = 32,
    hardest: int = 10,
) -> dict[str, float]:
    """Holds the loss of a head without class centers against the full head over the mean embeddings of the classes.

    Comparable with `selection_fidelity` are mass and recall: a class counts as selected if it is among those the head
    holds, though what it holds of the class is not its mean. The gradient is that of another loss: its cosine tells how
    far it goes the way of a full head over class means, and the ratio of lengths carries the head's own weights, such
    as those of FFC, which counts a probe twice. There is nothing to draw again, so neither bias nor variance.

    Args:
        loss: of the training step, before its backward pass.
        embeddings: (n, D) of this process, that it is the loss of.
        means: (classes of this process's shard, D).
        held: int64 class ids, over all classes, that stand against an embedding.

    Returns:
        mass, hardest_recall: as `selection_fidelity`.
        class_means_cosine, class_means_norm_ratio: between the gradient and that of the full head over class means.

    Raises:
        ValueError: a margin that does not normalize.
    """
    check_options(probes, 1, hardest)
    if not margin.normalize:
        raise ValueError(f"margin={margin}: class means have directions only; a margin that normalizes is needed")
    rank, world_size = rank_and_size(group)
    shard = Shard(num_classes, rank, world_size)
    assert len(means) == shard.size
    (gradient_nD,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        x_nD = directions(embeddings.float())
        # Of unit embeddings; every process has its own times the number of processes.
        gradient_nD = gradient_nD.float() * embeddings.float().norm(dim=1, keepdim=True) / world_size
        sizes = gather_sizes(len(x_nD), x_nD.device, group)
        batch = gather(x_nD, labels, None, sizes, group)
        # Of each one's own loss in the mean, as the exact gradient is of the mean over Q.
        chosen = spread_over(len(batch.x_ND), probes)
        gradient_QD = gather_rows(gradient_nD, sizes, group)[chosen] * (len(batch.x_ND) / len(chosen))
        x_QD, labels_Q = batch.x_ND[chosen], batch.labels_N[chosen]
        rows = DenseRows(means.to(x_QD))
        exact = FullSoftmax(x_QD, labels_Q, rows, shard, margin, group, hardest)
        ids = shard.local(held.to(x_QD.device))
        ids = ids[ids >= 0].sort().values
        gradients = compared(gradient_QD[None], exact.gradient_QD)
        return {
            "mass": float(exact.mass(rows.subset(ids), ids).mean()),
            "hardest_recall": float(exact.recall(ids).mean()),
            "class_means_cosine": gradients["gradient_cosine"],
            "class_means_norm_ratio": gradients["gradient_norm_ratio"],
        }


def check_options(probes: int, repeats: int, hardest: int) -> None:
    for name, value in (("probes", probes), ("repeats", repeats), ("hardest", hardest)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"fidelity.{name}={value}: must be at least 1, a whole number")


def spread_over(count: int, probes: int) -> list[int]:
    """So many of `count` places, all if there are fewer, evenly: a batch may be of several kinds, one after another."""
    probes = min(probes, count)
    return [place * count // probes for place in range(probes)]


def compared(gradients_RQD: Tensor, exact_QD: Tensor) -> dict[str, float]:
    """What is said of gradients of repeated selections, beside the exact one; in float64."""
    gradients_RQD, exact_QD = gradients_RQD.double(), exact_QD.double()
    repeats = len(gradients_RQD)
    # One by one, so that equal gradients give equal sums, to the last bit.
    square = (exact_QD * exact_QD).sum()
    squares_R = torch.stack([(each_QD * each_QD).sum() for each_QD in gradients_RQD])
    products_R = torch.stack([(each_QD * exact_QD).sum() for each_QD in gradients_RQD])
    neither_R = (squares_R == 0) & (square == 0)  # where both vanish they agree
    square = square.clamp(min=torch.finfo(torch.float64).tiny)
    cos_R = torch.where(neither_R, 1.0, (products_R / (squares_R * square).sqrt()).nan_to_num(0.0))
    ratio_R = torch.where(neither_R, 1.0, (squares_R / square).sqrt())
    result = {"gradient_cosine": float(cos_R.mean()), "gradient_norm_ratio": float(ratio_R.mean())}
    if repeats > 1:
        variance = gradients_RQD.var(0).sum()
        error = (gradients_RQD.mean(0) - exact_QD).square().sum() - variance / repeats
        result["gradient_bias"] = float((error / square).clamp(min=0).sqrt())
        result["gradient_variance"] = float(variance / square)
    return result


def _gradient(head: CenterHead, exact: FullSoftmax, rows: ActiveRows, selection: Selection) -> Tensor:
    """As the head would give it for this selection."""
    x_QD = exact.x_QD
    softmax = MarginSoftmax(
        x_QD,
        x_QD.new_ones(len(x_QD)),
        exact.position(selection.ids),
        rows,
        head.margin,
        log_q_K=selection.log_q,
        group=head.process_group,
        min_probability=head.min_probability,
        matmul=head.matmul,
    )
    softmax.loss(keep=False)
    return direction(softmax.backward(x_QD.new_ones(()))[0], x_QD, head.margin)


@contextmanager
def _in_other_draws(head: CenterHead) -> Iterator[None]:
    """Selections are drawn by other keys, and their time is not the head's."""
    micro_batch, timer = head.micro_batch, head.timer
    head.timer = Timer()
    device = head.centers.like.device
    draws = torch.random.fork_rng([device] if device.type == "cuda" else [])  # of a head that draws without a key
    try:
        with head.only_looking(), draws:
            yield
    finally:
        head.micro_batch, head.timer = micro_batch, timer
