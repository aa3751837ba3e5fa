"""The loss over all classes on a few embeddings, as the reference for selections: gradient, mass, hardest negatives.

All rows are streamed; no tensor of size Q x C is created. A negative's mass is its share of the gradients by the
negative logits: its probability in a softmax.

Legend: Q embeddings, D row width, k nearest classes.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..center_head import CenterHead
from ..group.batch import GlobalBatch
from ..group.collectives import gather_columns, gather_sizes, max_over_processes, rank_and_size, sum_over_processes
from ..objectives.inputs import LossInputs
from ..objectives.objective import Objective
from ..objectives.rows import Rows
from ..objectives.softmax import chunks
from ..objectives.streamed import Streamed
from ..rows.active import ActiveRows
from ..selection.selection import Selection


class FullLoss:
    """The loss over all classes on a few embeddings, which are the same on all processes.

    Args:
        objective: the head's objective.
        inputs: the embeddings, and the rows of all classes of this process's shard.
        hardest: number of negatives with the highest logits that `recall` counts.

    Attributes:
        highest_Q, sum_Q: highest log of a negative's pull, and sum of exp(log - highest), over all processes.
        support_Q: number of negatives with a pull over all processes; of all of them, unless the objective is sparse.
        top_Qk, nearest_Qk: pulls, as logs, and rows of the hardest negatives of this shard.
    """

    def __init__(self, objective: Objective, inputs: LossInputs, hardest: int):
        self.objective, self.inputs, self.group = objective, inputs, inputs.group
        self.x_QD = inputs.x_ND
        self.loss = objective.streamed(inputs)
        self.loss.ready()
        negatives = stream_negatives(self.loss, k=hardest)
        self.highest_Q, self.sum_Q, self.support_Q = negatives.over_processes(self.group)
        self.top_Qk, self.nearest_Qk = negatives.top_Qk, negatives.nearest_Qk
        self.among_hardest_Qk = self._among_hardest(negatives.hardness_Qk, hardest)

    @cached_property
    def gradient_QD(self) -> Tensor:
        """The gradient of the mean loss, as `backbone_gradient` returns it."""
        return backbone_gradient(self.objective, self.inputs)

    def mass(self, rows: Rows, selection: Selection) -> Tensor:
        """Return the share of each embedding's negative mass in these rows of all processes (Q,); see `held`."""
        return self.held(rows, selection)[0]

    def held(self, rows: Rows, selection: Selection) -> tuple[Tensor, Tensor]:
        """Return share and number of each embedding's negatives with a pull among these rows of all processes (Q,).

        The share is that of the mass.

        Args:
            rows: some rows of the shard.
            selection: where they are in the shard.
        """
        inputs = replace(self.inputs, rows=rows, position_P=selection.find(self.inputs.position_P))
        if (position_M := inputs.position_M) is not None:
            inputs = replace(inputs, position_M=selection.find(position_M))
        loss = self.objective.streamed(inputs)
        loss.begin_like(self.loss)  # the samples' own classes may be missing
        highest_Q, sum_Q, support_Q = stream_negatives(loss).over_processes(self.group)
        share_Q = (highest_Q - self.highest_Q).exp() * sum_Q / self.sum_Q
        return torch.where(self.sum_Q > 0, share_Q, 1.0), support_Q  # without negatives, no mass is missing

    def recall(self, selection: Selection) -> Tensor:
        """Return the share of each embedding's hardest negatives (Q,) among these rows of all shards."""
        selected_Qk = selection.find(self.nearest_Qk) >= 0
        counts = torch.stack([(self.among_hardest_Qk & selected_Qk).sum(1), self.among_hardest_Qk.sum(1)])
        selected_Q, all_Q = sum_over_processes(counts, self.group)
        return torch.where(all_Q > 0, selected_Q / all_Q.clamp(min=1), 1.0)

    def _among_hardest(self, top_Qk: Tensor, hardest: int) -> Tensor:
        """Return which of this shard's hardest negatives are among the hardest over all processes, bool (Q, k)."""
        rank, _ = rank_and_size(self.group)
        widths = gather_sizes(top_Qk.shape[1], top_Qk.device, self.group)
        all_QM = gather_columns(top_Qk, widths, self.group)
        chosen_QM = torch.zeros_like(all_QM, dtype=torch.bool)
        chosen_QM.scatter_(1, all_QM.topk(min(hardest, all_QM.shape[1]), dim=1).indices, True)
        start = sum(widths[:rank])
        return chosen_QM[:, start : start + widths[rank]] & torch.isfinite(top_Qk)


@dataclass(frozen=True)
class Coverage:
    """The mass of the active classes.

    Attributes:
        mass_Q: share of each embedding's negative mass in the active classes of all processes.
        perfect_Q: this share if `nearest_Qk` were active too.
        nearest_Qk: the exact nearest classes of this shard without its own class, as rows of the shard.
        missing_Q: number of negatives that have a pull over all classes and are not active.
        figures: those of the loss over all classes.
    """

    mass_Q: Tensor
    perfect_Q: Tensor
    nearest_Qk: Tensor
    missing_Q: Tensor
    figures: dict[str, float]


@torch.no_grad()
def coverage(head: CenterHead, batch: GlobalBatch, selection: Selection, *, k: int) -> Coverage:
    """Measure the mass of the active classes: read all rows of the shard once, and the active ones twice.

    For a sparse objective, all rows are read twice.

    Args:
        head: the head whose classes are active.
        batch: embeddings in the space of the rows, the same on all processes.
        selection: the active rows of this shard.
        k: number of nearest classes of this shard to find.
    """
    full = full_loss(head, batch, k)
    missed_Qk = selection.find(full.nearest_Qk) < 0
    missed_Q = ((full.top_Qk - full.highest_Q[:, None]).exp() * missed_Qk).sum(1)
    mass_Q, held_Q = full.held(ActiveRows(head.centers, selection, keep=False), selection)
    missed_Q = sum_over_processes(missed_Q, head.process_group)
    perfect_Q = mass_Q + torch.where(full.sum_Q > 0, missed_Q / full.sum_Q, 0)
    figures = {name: float(figure) for name, figure in full.loss.figures().items()}
    return Coverage(mass_Q, perfect_Q, full.nearest_Qk, full.support_Q - held_Q, figures)


def full_loss(head: CenterHead, batch: GlobalBatch, hardest: int) -> FullLoss:
    """Return the loss of a head over all its classes."""
    rows = ActiveRows(head.centers, Selection(), keep=False)
    inputs = head.loss_inputs(batch, Selection(), rows)
    return FullLoss(head.objective, inputs.exact(), hardest)


@dataclass(frozen=True)
class Negatives:
    """The negatives of Q embeddings among some rows of this process.

    Attributes:
        max_Q, sum_Q: highest log of a pull, and sum of exp(log - highest).
        support_Q: number of negatives with a pull, int64.
        top_Qk, hardness_Qk, nearest_Qk: of the hardest negatives the logs of their pulls, what orders them, and the
            positions of their rows. They are ordered by these logs, or by their logits if the objective is sparse.
    """

    max_Q: Tensor
    sum_Q: Tensor
    support_Q: Tensor
    top_Qk: Tensor
    hardness_Qk: Tensor
    nearest_Qk: Tensor

    def over_processes(self, group: ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return highest log, sum, and number of negatives with a pull over the rows of all processes."""
        highest_Q = max_over_processes(self.max_Q.clone(), group)
        sum_Q = sum_over_processes(self.sum_Q * (self.max_Q - highest_Q).exp(), group)
        return highest_Q, sum_Q, sum_over_processes(self.support_Q.clone(), group)


def stream_negatives(loss: Streamed, *, k: int = 0) -> Negatives:
    """Compute the mass of the negatives in one pass over the rows.

    Args:
        loss: a loss that is ready.
        k: number of the hardest negatives to return.
    """
    x_QD, count = loss.x_ND, loss.num_samples
    max_Q = x_QD.new_full((count,), torch.finfo(x_QD.dtype).min)
    sum_Q, support_Q = torch.zeros_like(max_Q), torch.zeros_like(max_Q, dtype=torch.int64)
    top_Qk = hardness_Qk = x_QD.new_empty(count, 0)
    nearest_Qk = loss.placed.position_P.new_empty(count, 0)
    for a, b in chunks(loss.num_rows):
        cos_kQ = loss.class_cosines(a, b)
        own = loss.placed_positives.within(a, b).at
        logs_kQ = loss.log_pull(a, b, cos_kQ)
        logs_kQ[own] = -torch.inf
        new_max_Q = torch.maximum(max_Q, logs_kQ.amax(0))
        sum_Q = sum_Q * (max_Q - new_max_Q).exp_() + (logs_kQ - new_max_Q).exp_().sum(0)
        max_Q = new_max_Q
        support_Q += (logs_kQ > -torch.inf).sum(0)
        if k:
            hardness_kQ = logs_kQ
            if loss.sparse:  # most logs are -inf
                hardness_kQ = loss.negative_logits(cos_kQ)
                hardness_kQ[own] = -torch.inf
            places = torch.arange(a, b, device=x_QD.device).expand(count, -1)
            merged = torch.cat([hardness_Qk, hardness_kQ.T], dim=1)
            hardness_Qk, best = merged.topk(min(k, merged.shape[1]), dim=1)
            top_Qk = torch.cat([top_Qk, logs_kQ.T], dim=1).gather(1, best)
            nearest_Qk = torch.cat([nearest_Qk, places], dim=1).gather(1, best)
    return Negatives(max_Q, sum_Q, support_Q, top_Qk, hardness_Qk, nearest_Qk)


def backbone_gradient(objective: Objective, inputs: LossInputs) -> Tensor:
    """Return the part of the gradient by x_QD that reaches the backbone, up to a factor per embedding."""
    loss, x_QD = objective.streamed(inputs), inputs.x_ND
    loss.loss(keep=False, learns=True)
    gradient_QD = loss.backward(x_QD.new_ones(())).x_ND
    if not inputs.margin.normalize:
        return gradient_QD[:, :-1]
    return gradient_QD - (gradient_QD * x_QD).sum(1, keepdim=True) * x_QD
