"""The exact full head on a few embeddings, as the oracle of others: its gradient, its mass, its hardest negatives.

All rows stream past; nothing of size Q x C has to exist.

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

    def mass(self, rows: RowSequence, ids: Tensor | None) -> Tensor:
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
        of_all_QM = gather_columns(top_Qk, widths, self.group)
        chosen_QM = torch.zeros_like(of_all_QM, dtype=torch.bool)
        chosen_QM.scatter_(1, of_all_QM.topk(min(hardest, of_all_QM.shape[1]), dim=1).indices, True)
        first = sum(widths[:rank])
        return chosen_QM[:, first : first + widths[rank]] & torch.isfinite(top_Qk)


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
    oracle = FullSoftmax(x_QD, labels_Q, rows, head.centers.shard, head.margin, head.process_group, k)
    missed_Qk = torch.zeros_like(oracle.top_Qk) if ids is None else (positions(ids, oracle.nearest_Qk) < 0)
    missed_Q = ((oracle.top_Qk - oracle.highest_Q[:, None]).exp() * missed_Qk).sum(1)
    mass_Q = oracle.mass(active, ids)
    return Coverage(mass_Q, mass_Q + sum_over_processes(missed_Q, head.process_group) / oracle.sum_Q, oracle.nearest_Qk)


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
    x_QD: Tensor, own_Q: Tensor, rows: RowSequence, margin: Margin, target_cos_Q: Tensor, *, k: int = 0
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
        logits_kQ = margin.negative_logits(_unit(rows.slice(a, b), margin) @ x_QD.T, target_cos_Q)
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


def _unit(rows: Tensor, margin: Margin) -> Tensor:
    return normalize(rows, eps=MIN_NORM) if margin.normalize else rows
