"""The full softmax on a few embeddings, as the reference for sampled softmaxes: gradient, mass and hardest negatives.

All rows are streamed; no tensor of size Q x C is created.

Legend: Q embeddings, D row width, k nearest classes.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from ..center_head import CenterHead
from ..group.collectives import gather_columns, gather_sizes, max_over_processes, rank_and_size, sum_over_processes
from ..group.sharding import Shard, positions
from ..margins.margin import Margin
from ..objectives.rows import MIN_NORM, Rows, RowSequence
from ..objectives.softmax import MarginSoftmax, chunks
from ..rows.active import ActiveRows


class FullSoftmax:
    """The softmax over all classes on a few embeddings, which are the same on all processes.

    Args:
        x_QD: embeddings, of unit length if the margin normalizes, else with a last column of ones.
        labels_Q: class ids.
        rows: the rows of all classes of this process's shard.
        shard: the classes of this process.
        margin: the head's margin.
        group: the processes that share the classes; None for one process.
        hardest: number of negatives with the highest logits that `recall` counts.

    Attributes:
        highest_Q, sum_Q: highest negative logit, and sum of exp(logit - highest), over all processes.
        top_Qk, nearest_Qk: highest negative logits of this shard, and their rows.
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
        negatives = stream_negatives(x_QD, self.local_Q, rows, margin, self.target_cos_Q, k=hardest)
        self.highest_Q, self.sum_Q = negatives.over_processes(group)
        self.top_Qk, self.nearest_Qk = negatives.top_Qk, negatives.nearest_Qk
        self.among_hardest_Qk = self._among_hardest(hardest)

    @cached_property
    def gradient_QD(self) -> Tensor:
        """The gradient of the mean loss, as `backbone_gradient` returns it."""
        self.softmax.loss(keep=False)
        return backbone_gradient(self.softmax.backward(self.x_QD.new_ones(()))[0], self.x_QD, self.margin)

    def mass(self, rows: RowSequence, ids: Tensor | None) -> Tensor:
        """Return the share of each embedding's negative softmax mass in these rows of all processes (Q,).

        Args:
            rows: some rows of the shard.
            ids: their sorted ids in the shard; None for all.
        """
        negatives = stream_negatives(self.x_QD, self.position(ids), rows, self.margin, self.target_cos_Q)
        highest_Q, sum_Q = negatives.over_processes(self.group)
        share_Q = (highest_Q - self.highest_Q).exp() * sum_Q / self.sum_Q
        return torch.where(self.sum_Q > 0, share_Q, 1.0)  # without negatives, no mass is missing

    def recall(self, ids: Tensor | None) -> Tensor:
        """Return the share of each embedding's hardest negatives (Q,) among these rows of all shards."""
        selected_Qk = torch.ones_like(self.among_hardest_Qk) if ids is None else positions(ids, self.nearest_Qk) >= 0
        counts = torch.stack([(self.among_hardest_Qk & selected_Qk).sum(1), self.among_hardest_Qk.sum(1)])
        selected_Q, all_Q = sum_over_processes(counts, self.group)
        return torch.where(all_Q > 0, selected_Q / all_Q.clamp(min=1), 1.0)

    def position(self, ids: Tensor | None) -> Tensor:
        """Return the position of each embedding's own class among these rows of the shard (Q,), -1 if missing."""
        return self.local_Q if ids is None else positions(ids, self.local_Q)

    def _among_hardest(self, hardest: int) -> Tensor:
        """Return which of this shard's highest negatives are among the hardest over all processes, bool (Q, k)."""
        top_Qk = self.top_Qk
        rank, _ = rank_and_size(self.group)
        widths = gather_sizes(top_Qk.shape[1], top_Qk.device, self.group)
        all_QM = gather_columns(top_Qk, widths, self.group)
        chosen_QM = torch.zeros_like(all_QM, dtype=torch.bool)
        chosen_QM.scatter_(1, all_QM.topk(min(hardest, all_QM.shape[1]), dim=1).indices, True)
        start = sum(widths[:rank])
        return chosen_QM[:, start : start + widths[rank]] & torch.isfinite(top_Qk)


@dataclass(frozen=True)
class Coverage:
    """The softmax mass of the active classes.

    Attributes:
        mass_Q: share of each embedding's negative softmax mass in the active classes of all processes.
        perfect_Q: this share if `nearest_Qk` were active too.
        nearest_Qk: the exact nearest classes of this shard without its own class, as rows of the shard.
    """

    mass_Q: Tensor
    perfect_Q: Tensor
    nearest_Qk: Tensor


@torch.no_grad()
def coverage(head: CenterHead, x_QD: Tensor, labels_Q: Tensor, ids: Tensor | None, *, k: int) -> Coverage:
    """Measure the softmax mass of the active classes: read all rows of the shard once, and the active ones twice.

    Args:
        head: the head whose classes are active.
        x_QD: embeddings in the space of the rows, the same on all processes.
        labels_Q: class ids.
        ids: the active rows of this shard, sorted; None for all.
        k: number of nearest classes of this shard to find.
    """
    rows, active = (ActiveRows(head.centers, some, keep=False) for some in (None, ids))
    full = FullSoftmax(x_QD, labels_Q, rows, head.centers.shard, head.margin, head.process_group, k)
    missed_Qk = torch.zeros_like(full.top_Qk) if ids is None else (positions(ids, full.nearest_Qk) < 0)
    missed_Q = ((full.top_Qk - full.highest_Q[:, None]).exp() * missed_Qk).sum(1)
    mass_Q = full.mass(active, ids)
    return Coverage(mass_Q, mass_Q + sum_over_processes(missed_Q, head.process_group) / full.sum_Q, full.nearest_Qk)


@dataclass(frozen=True)
class Negatives:
    """The negative softmax of Q embeddings over some rows of this process.

    Attributes:
        max_Q, sum_Q: highest logit, and sum of exp(logit - highest).
        top_Qk, nearest_Qk: the highest logits, and the positions of their rows.
    """

    max_Q: Tensor
    sum_Q: Tensor
    top_Qk: Tensor
    nearest_Qk: Tensor

    def over_processes(self, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
        """Return highest logit and sum over the rows of all processes."""
        highest_Q = max_over_processes(self.max_Q.clone(), group)
        return highest_Q, sum_over_processes(self.sum_Q * (self.max_Q - highest_Q).exp(), group)


def stream_negatives(
    x_QD: Tensor, own_Q: Tensor, rows: RowSequence, margin: Margin, target_cos_Q: Tensor, *, k: int = 0
) -> Negatives:
    """Compute the negative softmax in one pass over the rows.

    Args:
        x_QD: embeddings.
        own_Q: position of each embedding's own class among the rows, -1 if it is not there.
        rows: the rows.
        margin: the head's margin.
        target_cos_Q: cosine of each embedding with its own class.
        k: number of highest logits to return.
    """
    with_own = (own_Q >= 0).nonzero()[:, 0]
    max_Q = torch.full_like(target_cos_Q, torch.finfo(x_QD.dtype).min)
    sum_Q = torch.zeros_like(max_Q)
    top_Qk, nearest_Qk = x_QD.new_empty(len(x_QD), 0), own_Q.new_empty(len(x_QD), 0)
    for a, b in chunks(len(rows)):
        logits_kQ = margin.negative_logits(_unit(rows.slice(a, b), margin) @ x_QD.T, target_cos_Q)
        own = with_own[(own_Q[with_own] >= a) & (own_Q[with_own] < b)]
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


def backbone_gradient(gradient_QD: Tensor, x_QD: Tensor, margin: Margin) -> Tensor:
    """Return the part of a gradient of x_QD that reaches the backbone, up to a factor per embedding."""
    if not margin.normalize:
        return gradient_QD[:, :-1]
    return gradient_QD - (gradient_QD * x_QD).sum(1, keepdim=True) * x_QD


def _unit(rows: Tensor, margin: Margin) -> Tensor:
    return normalize(rows, eps=MIN_NORM) if margin.normalize else rows
