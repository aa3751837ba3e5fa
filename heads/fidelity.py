"""How much of the exact softmax a head keeps, on a few embeddings: of its mass, and of the gradient it gives them.

A head with class centers is held against the full head on the same centers, in selections drawn anew
(`selection_fidelity`). A head without them is held against a full head whose centers are the mean embeddings of the
classes (`loss_fidelity`): its own negatives are other vectors, so that it cannot reach 1.

Legend: Q embeddings, D row width, k hardest negatives, R repeated selections.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from .batch import check_embeddings, check_labels, check_values, gather
from .centers import ActiveRows
from .collectives import gather_rows, gather_sizes, max_over_processes, rank_and_size, sum_over_processes
from .head import CenterHead, Selection
from .margins import Margin
from .sharding import Shard
from .softmax import MIN_NORM, MarginSoftmax, Rows, Stretches, chunks
from .stopwatch import Stopwatch

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
    check_embeddings(embeddings, head.embedding_size)
    check_labels(embeddings, labels, None)
    group = head.process_group
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False), _in_other_draws(head):
        batch = gather(head.to_rows_space(embeddings), labels, None, group)
        check_values(batch, head.centers.shard.num_classes, head.step)
        chosen = spread_over(len(batch.x_ND), probes)
        x_QD, labels_Q = batch.x_ND[chosen], batch.labels_N[chosen]
        everything = ActiveRows(head.centers, None, keep=False)
        exact = Exact(x_QD, labels_Q, everything, head.centers.shard, head.margin, group, hardest)
        masses, recalls, gradients = [], [], []
        for repeat in range(repeats):
            head.micro_batch = FIRST_REPEAT + repeat
            selection = head.select(batch.x_ND, batch.labels_N)
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
        x_nD = normalize(embeddings.float(), eps=MIN_NORM)
        # Of unit embeddings; every process has its own times the number of processes.
        gradient_nD = gradient_nD.float() * embeddings.float().norm(dim=1, keepdim=True) / world_size
        batch = gather(x_nD, labels, None, group)
        sizes = gather_sizes(len(x_nD), x_nD.device, group)
        # Of each one's own loss in the mean, as the exact gradient is of the mean over Q.
        chosen = spread_over(len(batch.x_ND), probes)
        gradient_QD = gather_rows(gradient_nD, sizes, group)[chosen] * (len(batch.x_ND) / len(chosen))
        x_QD, labels_Q = batch.x_ND[chosen], batch.labels_N[chosen]
        rows = DenseRows(means.to(x_QD))
        exact = Exact(x_QD, labels_Q, rows, shard, margin, group, hardest)
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


class Exact:
    """The full head on a few embeddings, which all processes hold alike.

    Args:
        x_QD: of unit length where the margin normalizes; with a last column of ones where it does not.
        rows: of all classes of this process's shard.
        hardest: how many of the negatives with the highest logits `recall` is about.

    Attributes:
        highest_Q, sum_Q: highest negative logit, and sum of exp(logit - highest), over all processes.
        top_Qk, nearest_Qk: highest logits of this shard, and rows of it.
    """

    def __init__(
        self,
        x_QD: Tensor,
        labels_Q: Tensor,
        rows: Rows,
        shard: Shard,
        margin: Margin,
        group: ProcessGroup | None,
        hardest: int,
    ):
        self.x_QD, self.margin, self.group = x_QD, margin, group
        self.local_Q = shard.local(labels_Q)
        self.softmax = MarginSoftmax(x_QD, x_QD.new_ones(len(x_QD)), self.local_Q, rows, margin, group=group)
        self.target_cos_Q = self.softmax.target_cosines()
        found = negatives(x_QD, self.local_Q, rows, margin, self.target_cos_Q, k=hardest)
        self.highest_Q, self.sum_Q = found.over_processes(group)
        self.top_Qk, self.nearest_Qk = found.top_Qk, found.nearest_Qk
        self.among_hardest_Qk = self._among_hardest(hardest)

    @cached_property
    def gradient_QD(self) -> Tensor:
        """Of the mean loss, as `direction` has it."""
        self.softmax.loss(keep=False)
        return direction(self.softmax.backward(self.x_QD.new_ones(()))[0], self.x_QD, self.margin)

    def mass(self, rows: Stretches, ids: Tensor | None) -> Tensor:
        """Share of each embedding's negative softmax (Q,) that these rows hold.

        Args:
            ids: of the shard, sorted; None for all.
        """
        found = negatives(self.x_QD, self.position(ids), rows, self.margin, self.target_cos_Q)
        highest_Q, sum_Q = found.over_processes(self.group)
        share_Q = (highest_Q - self.highest_Q).exp() * sum_Q / self.sum_Q
        return torch.where(self.sum_Q > 0, share_Q, 1.0)  # nothing is missing where there is nothing

    def recall(self, ids: Tensor | None) -> Tensor:
        """Share of each embedding's hardest negatives (Q,) that are among these rows of the shard."""
        held_Qk = torch.ones_like(self.among_hardest_Qk) if ids is None else positions(ids, self.nearest_Qk) >= 0
        counts = torch.stack([(self.among_hardest_Qk & held_Qk).sum(1), self.among_hardest_Qk.sum(1)])
        found_Q, all_Q = sum_over_processes(counts, self.group)
        return torch.where(all_Q > 0, found_Q / all_Q.clamp(min=1), 1.0)

    def position(self, ids: Tensor | None) -> Tensor:
        """Where each embedding's own class (Q,) stands among these rows of the shard, -1 if it does not."""
        return self.local_Q if ids is None else positions(ids, self.local_Q)

    def _among_hardest(self, hardest: int) -> Tensor:
        """Which of this process's candidates are among the hardest of all processes'."""
        top_Qk = self.top_Qk
        rank, _ = rank_and_size(self.group)
        widths = gather_sizes(top_Qk.shape[1], top_Qk.device, self.group)
        of_all_QM = gather_rows(top_Qk.T.contiguous(), widths, self.group).T
        chosen_QM = torch.zeros_like(of_all_QM, dtype=torch.bool)
        chosen_QM.scatter_(1, of_all_QM.topk(min(hardest, of_all_QM.shape[1]), dim=1).indices, True)
        first = sum(widths[:rank])
        return chosen_QM[:, first : first + widths[rank]] & torch.isfinite(top_Qk)


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
def coverage(head: CenterHead, x_QD: Tensor, labels_Q: Tensor, ids: Tensor | None, *, k: int) -> Coverage:
    """Streams all rows of the shard past Q embeddings once, and the active ones once more.

    Args:
        x_QD: the same on all processes, in the space of the rows.
        ids: the active rows of this shard, sorted; None for all.
        k: how many nearest classes of this shard to find.
    """
    rows, active = (ActiveRows(head.centers, chosen, keep=False) for chosen in (None, ids))
    exact = Exact(x_QD, labels_Q, rows, head.centers.shard, head.margin, head.process_group, k)
    missed_Qk = torch.zeros_like(exact.top_Qk) if ids is None else (positions(ids, exact.nearest_Qk) < 0)
    missed_Q = ((exact.top_Qk - exact.highest_Q[:, None]).exp() * missed_Qk).sum(1)
    mass_Q = exact.mass(active, ids)
    return Coverage(mass_Q, mass_Q + sum_over_processes(missed_Q, head.process_group) / exact.sum_Q, exact.nearest_Qk)


@dataclass(frozen=True)
class Negatives:
    """The negative softmax of Q embeddings over some rows of this process.

    Attributes:
        max_Q, sum_Q: highest logit, and sum of exp(logit - highest).
        top_Qk, nearest_Qk: the highest logits, and positions of their rows.
    """

    max_Q: Tensor
    sum_Q: Tensor
    top_Qk: Tensor
    nearest_Qk: Tensor

    def over_processes(self, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
        """Highest logit and sum over the rows of all processes."""
        highest_Q = max_over_processes(self.max_Q.clone(), group)
        return highest_Q, sum_over_processes(self.sum_Q * (self.max_Q - highest_Q).exp(), group)


def negatives(
    x_QD: Tensor, own_Q: Tensor, rows: Stretches, margin: Margin, target_cos_Q: Tensor, *, k: int = 0
) -> Negatives:
    """Streams rows past the embeddings once.

    Args:
        own_Q: position of each one's own class among the rows, -1 if it is not there.
        k: how many nearest to find.
    """
    here = (own_Q >= 0).nonzero()[:, 0]
    max_Q = torch.full_like(target_cos_Q, torch.finfo(x_QD.dtype).min)
    sum_Q = torch.zeros_like(max_Q)
    top_Qk, nearest_Qk = x_QD.new_empty(len(x_QD), 0), own_Q.new_empty(len(x_QD), 0)
    for a, b in chunks(len(rows)):
        logits_kQ = margin.negative_logits(_unit(rows.stretch(a, b), margin) @ x_QD.T, target_cos_Q)
        own = here[(own_Q[here] >= a) & (own_Q[here] < b)]
        logits_kQ[own_Q[own] - a, own] = -torch.inf
        new_max_Q = torch.maximum(max_Q, logits_kQ.amax(0))
        sum_Q = sum_Q * (max_Q - new_max_Q).exp_() + (logits_kQ - new_max_Q).exp_().sum(0)
        max_Q = new_max_Q
        if k:
            places = torch.arange(a, b, device=x_QD.device).expand(len(x_QD), -1)
            merged = torch.cat([top_Qk, logits_kQ.T], dim=1)
            top_Qk, best = merged.topk(min(k, merged.shape[1]), dim=1)
            nearest_Qk = torch.cat([nearest_Qk, places], dim=1).gather(1, best)
    return Negatives(max_Q, sum_Q, top_Qk, nearest_Qk)


def direction(gradient_QD: Tensor, x_QD: Tensor, margin: Margin) -> Tensor:
    """The part of a gradient of rows-space embeddings that reaches the backbone, but for a factor of each."""
    if not margin.normalize:
        return gradient_QD[:, :-1]
    return gradient_QD - (gradient_QD * x_QD).sum(1, keepdim=True) * x_QD


def positions(ids: Tensor, wanted: Tensor) -> Tensor:
    """Where numbers stand among sorted ids, -1 where they do not."""
    if not len(ids):
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(ids, wanted).clamp_(max=len(ids) - 1)
    return torch.where(ids[place] == wanted, place, -1)


class DenseRows:
    """Rows that are there as they are."""

    def __init__(self, rows_KD: Tensor):
        self.rows_KD = rows_KD

    def __len__(self) -> int:
        return len(self.rows_KD)

    def at(self, positions: Tensor) -> Tensor:
        return self.rows_KD[positions]

    def stretch(self, a: int, b: int) -> Tensor:
        return self.rows_KD[a:b]

    def subset(self, positions: Tensor) -> "DenseRows":
        return DenseRows(self.rows_KD[positions])

    def release(self) -> None:
        """Nothing is held."""


def _gradient(head: CenterHead, exact: Exact, rows: ActiveRows, selection: Selection) -> Tensor:
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
        filter_below=head.filter_below,
        products=head.products,
    )
    softmax.loss(keep=False)
    return direction(softmax.backward(x_QD.new_ones(()))[0], x_QD, head.margin)


@contextmanager
def _in_other_draws(head: CenterHead) -> Iterator[None]:
    """Selections are drawn by other keys, and their time is not the head's."""
    micro_batch, stopwatch = head.micro_batch, head.stopwatch
    head.stopwatch, head.probing = Stopwatch(), True
    device = head.centers.like.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # of a head that draws without a key
            yield
    finally:
        head.micro_batch, head.stopwatch, head.probing = micro_batch, stopwatch, False


def _unit(rows: Tensor, margin: Margin) -> Tensor:
    return normalize(rows, eps=MIN_NORM) if margin.normalize else rows
