"""The common part of the losses of all objectives: one global batch, the active rows, and the margin of the pass.

This file depends on neither stores nor optimizers: it reads `Rows`.

Legend: N global batch, P targets (pairs of a sample and a class, N with one label a sample), D columns of an embedding,
K active classes of this process, k classes of a chunk, L and l their rows: as many, if a class has one row. A suffix
such as `x_ND` names the dimensions. `x_ND` has unit rows if the margin normalizes. Rows may have one more column, a
bias.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..group.collectives import sum_over_processes
from ..margins.margin import Margin
from .inputs import LossGradient, LossInputs, NegativeGradient
from .placed import PlacedPairs
from .rows import MIN_NORM

if TYPE_CHECKING:
    pass


class Streamed(ABC):
    """The loss of one forward pass: `loss` computes it, and `backward` its gradient."""

    averages = True  # whether the loss of a sample is the mean over its targets
    sparse = False  # whether negatives may have a gradient of exactly 0

    def __init__(self, inputs: LossInputs):
        self.inputs = inputs
        self.x_ND, self.rows, self.num_rows = inputs.x_ND, inputs.rows, len(inputs.rows)
        self.block, self.num_samples = inputs.block, len(inputs.weight_N)
        self.margin, self.group = inputs.margin, inputs.group
        self.matmul, self.workspace = inputs.matmul, inputs.workspace
        total = inputs.weight_N.sum()
        self.weight_N = inputs.weight_N / torch.where(total > 0, total, 1)  # of weights that are all 0, the loss is 0
        self.positives, device = inputs.positives, self.x_ND.device
        self.placed = self.placed_positives = PlacedPairs(inputs.position_P, self.positives.sample_P, device)
        if inputs.position_M is not None:
            self.placed_positives = PlacedPairs(inputs.position_M, self.positives.sample_M, device)
        # Weights of the targets: the loss of a sample is the mean over its targets, or the sum.
        self.mean_weight_P = self.weight_P = self.weight_N
        if (sample_P := self.positives.sample_P) is not None:
            targets_N = torch.bincount(sample_P, minlength=len(self.weight_N))
            self.mean_weight_P = (self.weight_N / targets_N)[sample_P]
            self.weight_P = self.mean_weight_P if self.averages else self.weight_N[sample_P]
        self.norm_L = self.x_ND.new_ones(self.num_rows * self.block.size)
        self.has_bias = False  # whether the objective learns a bias
        # Biases of the rows and of the targets' rows, where the rows have one beside a direction.
        self.column_K: Tensor | None = None
        self.target_column_P: Tensor | None = None

    @abstractmethod
    def loss(self, *, keep: bool, learns: bool) -> Tensor:
        """Return the weighted mean over the global batch, the same scalar on all processes.

        Args:
            keep: whether to keep K x N numbers, which saves the passes to come one matrix product.
            learns: whether `backward` may follow.
        """

    @abstractmethod
    def backward(self, scale: Tensor) -> LossGradient:
        """Return the gradient of the loss times `scale`, a scalar.

        Raises:
            RuntimeError: the rows have changed since `loss`.
        """

    @abstractmethod
    def logit_gradient(self, a: int, b: int, logits_kN: Tensor, coefficient_N: Tensor) -> Tensor:
        """Return the gradient by the negative logits of classes a to b, (b - a, N), as a new tensor.

        Args:
            logits_kN: their logits as the margin returns them; those of the targets are ignored.
            coefficient_N: weight of each sample.
        """

    def negative_gradient(self, a: int, b: int, cos_kN: Tensor, coefficient_N: Tensor) -> NegativeGradient:
        """Return the gradient by the cosines of classes a to b (b - a, N); 0 for positives."""
        with torch.enable_grad():
            leaf_kN = cos_kN.detach().requires_grad_()
            logits_kN = self.negative_logits(leaf_kN)
        gradient_kN = self.logit_gradient(a, b, logits_kN.detach(), coefficient_N)
        positives = self.placed_positives.within(a, b)
        if len(positives.rows):
            gradient_kN[positives.at] = 0
        by_bias_k = gradient_kN.sum(1) if self.has_bias else None
        return NegativeGradient(torch.autograd.grad(logits_kN, leaf_kN, gradient_kN)[0], by_bias_k)

    @abstractmethod
    def log_pull(self, a: int, b: int, cos_kN: Tensor) -> Tensor:
        """Return the log of the gradient by each negative logit, up to a summand per sample, (b - a, N).

        The loss must be `ready`.
        """

    def ready(self) -> None:
        """Compute what `log_pull` needs, without the loss."""
        self.begin(needs_target_cos=True)

    def figures(self) -> dict[str, Tensor]:
        """Return scalars of this forward pass for `stats`, the same on all processes."""
        return {}

    def begin(self, *, needs_target_cos: bool) -> None:
        """Compute the target cosines, and begin the forward pass of the margin.

        Args:
            needs_target_cos: whether the objective needs all target cosines on all processes, as some margins do.
                Otherwise a process knows those of its own rows; the others are 0.
        """
        margin = self.margin
        if self.positives.sample_P is not None and margin.bends_negatives:
            raise ValueError(
                f"margin={type(margin).__name__} compares negatives with the cosine of the sample's class and cannot "
                "be used with several labels a sample; use a margin such as CosFace"
            )
        self.target_cos_P = self.own_target_cosines()
        if needs := needs_target_cos or margin.uses_target_cos:
            self.target_cos_P = sum_over_processes(self.target_cos_P, self.group)
        # A margin that does not state that it reads the target cosines must fail rather than read wrong ones.
        self.shared_target_cos_P: Tensor = self.target_cos_P if needs else None  # type: ignore[assignment]
        self.margin = margin.begin(self.inputs.batch, self.shared_target_cos_P)
        self.target_logit_P = self.target_logits(self.target_cos_P, self.margin)

    def begin_like(self, other: Streamed) -> None:
        """Take over target cosines and margin of a loss of the same batch that is ready."""
        self.target_cos_P, self.shared_target_cos_P = other.target_cos_P, other.shared_target_cos_P
        self.margin, self.target_logit_P = other.margin, other.target_logit_P

    def target_logits(self, cos_P: Tensor, margin: Margin) -> Tensor:
        """Return the logits of the targets, (P,)."""
        return margin.target_logits(cos_P)

    def negative_logits(self, cos_kN: Tensor) -> Tensor:
        """Return the logits of other classes, (k, N)."""
        return self.margin.negative_logits(cos_kN, self.shared_target_cos_P)

    def with_penalty(self, loss: Tensor) -> Tensor:
        """Return the loss plus the weighted mean of the margin's penalty."""
        penalty_P = self.margin.penalty()
        return loss if penalty_P is None else loss + torch.dot(self.mean_weight_P, penalty_P)

    def target_gradients(self, error_P: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients by the target cosines (P,), and by the lengths (N,) without the penalty.

        Args:
            error_P: gradient by the target logits.
        """
        margin, norm_P = self._margin_of_norms()
        with torch.enable_grad():
            cos_P = self.target_cos_P.clone().requires_grad_()
            logit_P = self.target_logits(cos_P, margin)
        if norm_P is None:
            return torch.autograd.grad(logit_P, cos_P, error_P)[0], None
        inputs = (cos_P, norm_P)
        cos_gradient_P, norm_gradient_P = torch.autograd.grad(logit_P, inputs, error_P, materialize_grads=True)
        return cos_gradient_P, self._of_embeddings(norm_gradient_P)

    def with_penalty_gradient(self, norm_gradient_N: Tensor | None, coefficient_P: Tensor) -> Tensor | None:
        """Return the gradient by the lengths (N,) plus that of the penalty, weighted.

        Args:
            norm_gradient_N: gradient by the lengths without the penalty; None if the margin does not depend on them.
            coefficient_P: weight of each target.
        """
        margin, norm_P = self._margin_of_norms()
        with torch.enable_grad():
            penalty_P = margin.penalty()
        if norm_gradient_N is None or norm_P is None or penalty_P is None:
            return norm_gradient_N
        gradient_P = torch.autograd.grad(penalty_P, norm_P, coefficient_P, materialize_grads=True)[0]
        return norm_gradient_N + self._of_embeddings(gradient_P)

    def _of_embeddings(self, values_P: Tensor) -> Tensor:
        """Return the sum over the targets of each embedding, (N,)."""
        values_S = self.positives.summed(values_P, self.num_samples)
        return self.block.of_embeddings(values_S, len(self.x_ND))

    def _margin_of_norms(self) -> tuple[Margin, Tensor | None]:
        """Return the margin as a function of lengths that require a gradient; None if it does not depend on them."""
        if self.margin.norm_N is None:
            return self.margin, None
        norm_P = self.margin.norm_N.clone().requires_grad_()
        return self.margin.fixed(norm_N=norm_P), norm_P

    def refuse_changed_rows(self) -> None:
        """Raise a RuntimeError if the rows have changed since the forward pass."""
        if self.rows.changed:
            raise RuntimeError(
                "the class centers have changed since this loss was computed; call backward before the optimizer steps "
                "and before rows are loaded or written"
            )

    def own_target_cosines(self) -> Tensor:
        """Return the cosine of each target (P,); 0 where another process owns the class."""
        here = self.placed.here
        cos_P = self.x_ND.new_zeros(len(self.placed.position_P))
        if len(here.rows):
            rows = self.rows.gather(here.rows)
            if self.target_column_P is not None:
                self.target_column_P[here.pairs] = rows[:, -1]
            rows = self.at_unit_length(self.directions(rows))
            x_pD = self.x_ND[self.block.embedding(here.samples, len(self.x_ND))]
            cos_pR = (x_pD[:, None] * rows.view(len(x_pD), self.block.size, -1)).sum(2)
            cos_P[here.pairs] = self.block.of_pairs(cos_pR, here.samples, len(self.x_ND))
        return cos_P

    def at_unit_length(self, rows_lD: Tensor) -> Tensor:
        """Return rows at unit length if the margin normalizes, whatever their classes."""
        return torch.nn.functional.normalize(rows_lD, eps=MIN_NORM) if self.margin.normalize else rows_lD

    def directions(self, rows_lD: Tensor) -> Tensor:
        """Return the columns of rows that are multiplied with embeddings: all but a bias beside directions."""
        columns = self.x_ND.shape[1]
        return rows_lD if rows_lD.shape[1] == columns else rows_lD[:, :columns]

    def measured(self, a: int, b: int) -> Tensor:
        """Return the rows of classes a to b without their bias, and keep their lengths and biases."""
        rows_lD = self.rows.slice(a, b)
        if self.column_K is not None:
            self.column_K[a:b] = rows_lD[:, -1]
        rows_lD = self.directions(rows_lD)
        if self.margin.normalize:
            self.norm_L[self.block.rows(a, b)] = torch.linalg.vector_norm(rows_lD, dim=1).clamp_(min=MIN_NORM)
        return rows_lD

    def compared(self, a: int, b: int, rows_lD: Tensor) -> Tensor:
        """Return the rows of classes a to b at unit length if the margin normalizes, in memory that is reused."""
        # Rows are scaled before the product. Scaling the product would round cosines, and s multiplies that error.
        if not self.margin.normalize:
            return rows_lD
        unit_lD = self.workspace.borrow("unit", tuple(rows_lD.shape), self.x_ND)
        return torch.div(rows_lD, self.norm_L[self.block.rows(a, b), None], out=unit_lD)

    def cosines(self, a: int, b: int, rows_lD: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the cosines (l, N) of the rows of classes a to b with the batch; inner products if not normalized."""
        return self.matmul.mm(self.compared(a, b, rows_lD), self.x_ND.T, out=out)

    def class_cosines(self, a: int, b: int) -> Tensor:
        """Return the cosines of classes a to b with the samples (b - a, N), in the first pass over the rows."""
        return self.block.combined(self.cosines(a, b, self.measured(a, b)))

    def acquired_cosines(self) -> Tensor:
        """Return memory for the cosines of all rows (L, N), which `RowGradient.release` returns."""
        return self.workspace.acquire("cosines", (len(self.norm_L), len(self.x_ND)), self.x_ND)
