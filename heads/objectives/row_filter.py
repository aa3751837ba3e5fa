"""The gradients of a softmax with `min_probability`: exact by the embeddings, and by the rows that matter.

The gradient by an embedding is a sum of rows, weighted with their probabilities. The first pass over the rows
accumulates it for all of them, relative to a running maximum as in attention kernels. What remains is the gradient by
the rows, for those of a sufficient probability.

Source of the running maximum: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

Legend: as in `softmax.py`; S rows that stay.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .placed import PlacedPairs

if TYPE_CHECKING:
    from .softmax import MarginSoftmax

MOST = 0.5  # share of the rows above which gathering those that stay takes longer than streaming all


class RowFilter:
    """Accumulates the gradient by the embeddings in pass one, and finds the rows that get a gradient.

    A class has one row, and a sample one label.

    Args:
        loss: the loss, whose margin has begun.
        min_probability: rows whose largest probability over the batch is below it get no gradient, unless they are a
            sample's own class. If more than `MOST` of the rows of this process stay, all of them do.
    """

    def __init__(self, loss: MarginSoftmax, min_probability: float):
        assert loss.block.size == 1 and not loss.has_several and loss.log_q_K is None
        self.min_probability = min_probability
        # Sum over the negatives of exp(logit - maximum so far) times d logit / d cos times the row.
        self.sum_ND = torch.zeros_like(loss.x_ND)
        # Upper bounds of the largest probabilities, and the denominators that they contain, for each chunk.
        self.bound_K = loss.x_ND.new_empty(loss.num_rows)
        self.chunks: list[tuple[int, Tensor]] = []
        self.found = False
        self.kept_S: Tensor | None = None  # positions of the rows that stay, once found; None for all

    def shrink(self, factor_N: Tensor) -> None:
        """Multiply what was accumulated, because the maximum that it is relative to has grown."""
        self.sum_ND.mul_(factor_N[:, None])

    def add(
        self,
        loss: MarginSoftmax,
        a: int,
        b: int,
        rows_kD: Tensor,
        cos_kN: Tensor,
        exp_kN: Tensor,
        max_N: Tensor,
        sum_N: Tensor,
    ) -> None:
        """Accumulate the rows a to b.

        Args:
            rows_kD: the rows as they were compared with the embeddings.
            cos_kN: their cosines.
            exp_kN: exp(logit - max_N), which is overwritten.
            max_N: the largest logits so far.
            sum_N: sum of exp(logit - max_N) over all rows so far.
        """
        positives = loss.placed_positives.within(a, b)
        if len(positives.rows):
            exp_kN[positives.at] = 0
        loss.matmul.addmm_(self.sum_ND, self._by_cosines(loss, cos_kN, exp_kN).T, rows_kD)
        # The denominator only grows, and contains the maximum, whose exponential is 1.
        sum_N = sum_N.clamp(min=1)
        self.bound_K[a:b] = exp_kN.div_(sum_N).amax(1)
        self.chunks.append((b - a, max_N + sum_N.log()))

    def x_gradient(self, loss: MarginSoftmax, coefficient_N: Tensor, cos_gradient_P: Tensor) -> Tensor:
        """Return the gradient by the embeddings (N, D) from all rows of this process.

        Args:
            coefficient_N: weight of each sample, over its denominator.
            cos_gradient_P: gradient by the target cosines.
        """
        x_gradient_ND = self.sum_ND * (coefficient_N * (loss.margin.slope or 1))[:, None]
        own = loss.placed.here
        rows_pD = loss.at_unit_length(loss.rows.gather(own.rows))
        return x_gradient_ND.index_add_(0, own.samples, rows_pD * cos_gradient_P[own.pairs, None])

    def narrowed(self, loss: MarginSoftmax) -> MarginSoftmax:
        """Return the loss for the gradient of the rows that stay. It takes over the kept cosines."""
        if not self.found:
            self.kept_S, self.found = self._find(loss), True
        narrow = copy.copy(loss)
        narrow.filter, loss.kept_LN = None, None
        if self.kept_S is None:
            return narrow
        narrow.rows, narrow.num_rows = loss.rows.subset(self.kept_S), len(self.kept_S)
        narrow.norm_L = loss.norm_L[self.kept_S]
        position_P = loss.placed.position_P
        places_P = torch.where(position_P >= 0, torch.searchsorted(self.kept_S, position_P), -1)
        narrow.placed = narrow.placed_positives = PlacedPairs(places_P, None, loss.x_ND.device)
        if (kept_LN := narrow.kept_LN) is not None:
            narrow.kept_LN = kept_LN[self.kept_S]
            loss.workspace.release("cosines", kept_LN)
        loss.rows.release()
        return narrow

    def _by_cosines(self, loss: MarginSoftmax, cos_kN: Tensor, exp_kN: Tensor) -> Tensor:
        """Return exp(logit) times d logit / d cos over the margin's slope, if it has one."""
        if loss.margin.slope is not None:
            return exp_kN
        with torch.enable_grad():
            leaf_kN = cos_kN.detach().requires_grad_()
            logits_kN = loss.negative_logits(leaf_kN)
        return torch.autograd.grad(logits_kN, leaf_kN, exp_kN)[0]

    def _find(self, loss: MarginSoftmax) -> Tensor | None:
        """Return the sorted positions of the rows that stay (S,), or None for all."""
        sizes, log_sums = zip(*self.chunks, strict=True)
        growth_c = (torch.stack(log_sums) - (loss.max_N + loss.sum_N.log())).exp_().amin(1)
        stays_K = self.bound_K * growth_c.repeat_interleave(growth_c.new_tensor(sizes, dtype=torch.int64))
        stays_K = stays_K >= self.min_probability  # by lower bounds
        between = ((self.bound_K >= self.min_probability) & ~stays_K).nonzero()[:, 0]
        stays_K[between] = loss.reaches(between, self.min_probability)
        stays_K[loss.placed.here.rows] = True
        kept_S = stays_K.nonzero()[:, 0]
        return kept_S if len(kept_S) <= MOST * loss.num_rows else None
