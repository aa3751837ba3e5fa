"""The common part of the losses of all objectives: one global batch, the active rows, and the margin of the pass.

This file depends on neither stores nor optimizers: it reads `Rows`.

Legend: N global batch, D columns of an embedding, K active rows of this process, k rows of a chunk. A suffix such as
`x_ND` names the dimensions. `x_ND` has unit rows if the margin normalizes. Rows may have one more column, a bias.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..core.matmul import MatMul
from ..core.workspace import Workspace
from ..group.collectives import sum_over_processes
from ..margins.batch import MarginBatch
from ..margins.margin import Margin
from .rows import MIN_NORM, Rows

if TYPE_CHECKING:
    from .row_gradient import RowGradient


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """The input of an objective.

    Attributes:
        x_ND: gathered embeddings, the same on all processes.
        weight_N: weight of each sample in the mean.
        position_N: int64, the position of each sample's class among the active rows; -1 if another process owns it.
            The host needs these positions, so a tensor on the host avoids waiting for the device.
        rows: the K active rows.
        margin: changes the cosines.
        batch: what the margin may read in addition.
        bias: (1, 1), the bias that all classes share; None without one.
        log_q_K: log of the probability that a row was drawn, subtracted from its logits; None for zeros.
        min_probability: rows whose largest probability over the batch is below it get no gradient, unless they are a
            sample's own class.
        group: the processes that share the classes; None for one process.
        matmul: multiplies matrices.
        workspace: provides buffers.
    """

    x_ND: Tensor
    weight_N: Tensor
    position_N: Tensor
    rows: Rows
    margin: Margin
    batch: MarginBatch
    bias: Tensor | None = None
    log_q_K: Tensor | None = None
    min_probability: float = 0.0
    group: ProcessGroup | None = None
    matmul: MatMul = field(default_factory=MatMul)
    workspace: Workspace = field(default_factory=Workspace)


@dataclass(frozen=True)
class LossGradient:
    """The gradient of a loss, times a factor.

    Attributes:
        x_ND: by the embeddings, summed over processes.
        norm_N: by the lengths of the embeddings, the same on all processes; None if the margin does not depend on them.
        rows: by the active rows.
    """

    x_ND: Tensor
    norm_N: Tensor | None
    rows: RowGradient


@dataclass(frozen=True)
class NegativeGradient:
    """The gradient of a loss by the negatives of a chunk, as new tensors.

    Attributes:
        by_cos_kN: by the cosines, over `slope`.
        by_bias_k: by a bias that is added to all logits of a row; None without one.
        slope: a factor that `by_cos_kN` does not contain.
    """

    by_cos_kN: Tensor
    by_bias_k: Tensor | None
    slope: float = 1.0


class Streamed(ABC):
    """The loss of one forward pass: `loss` computes it, and `backward` its gradient."""

    def __init__(self, inputs: LossInputs):
        self.inputs = inputs
        self.x_ND, self.rows, self.num_rows = inputs.x_ND, inputs.rows, len(inputs.rows)
        self.margin, self.group = inputs.margin, inputs.group
        self.matmul, self.workspace = inputs.matmul, inputs.workspace
        self.weight_N = inputs.weight_N / inputs.weight_N.sum()
        self._place_targets(inputs.position_N)
        self.norm_K = self.x_ND.new_ones(self.num_rows)
        self.has_bias = False  # whether the objective learns a bias
        # Biases of the rows and of the targets' rows, where the rows have one beside a direction.
        self.column_K: Tensor | None = None
        self.target_column_N: Tensor | None = None

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
        """Return the gradient by the negative logits of rows a to b, (b - a, N), as a new tensor.

        Args:
            logits_kN: their logits as the margin returns them; those of the targets are ignored.
            coefficient_N: weight of each sample.
        """

    def negative_gradient(self, a: int, b: int, cos_kN: Tensor, coefficient_N: Tensor) -> NegativeGradient:
        """Return the gradient by the cosines of rows a to b (b - a, N); 0 for targets."""
        with torch.enable_grad():
            leaf_kN = cos_kN.detach().requires_grad_()
            logits_kN = self.negative_logits(leaf_kN)
        gradient_kN = self.logit_gradient(a, b, logits_kN.detach(), coefficient_N)
        targets = self.targets(a, b)
        if len(targets[1]):
            gradient_kN[targets] = 0
        by_bias_k = gradient_kN.sum(1) if self.has_bias else None
        return NegativeGradient(torch.autograd.grad(logits_kN, leaf_kN, gradient_kN)[0], by_bias_k)

    @abstractmethod
    def log_pull(self, a: int, b: int, cos_kN: Tensor) -> Tensor:
        """Return the log of the gradient by each negative logit, up to a summand per sample, (b - a, N)."""

    def begin(self, *, needs_target_cos: bool) -> None:
        """Compute the target cosines, and begin the forward pass of the margin.

        Args:
            needs_target_cos: whether the objective needs all target cosines on all processes, as some margins do.
                Otherwise a process knows those of its own rows; the others are 0.
        """
        self.target_cos_N = self.own_target_cosines()
        if needs := needs_target_cos or self.margin.uses_target_cos:
            self.target_cos_N = sum_over_processes(self.target_cos_N, self.group)
        # A margin that does not state that it reads the target cosines must fail rather than read wrong ones.
        self.shared_target_cos_N: Tensor = self.target_cos_N if needs else None  # type: ignore[assignment]
        self.margin = self.margin.begin(self.inputs.batch, self.shared_target_cos_N)
        self.target_logit_N = self.target_logits(self.target_cos_N, self.margin)

    def begin_like(self, other: Streamed) -> None:
        """Take over target cosines and margin of a loss of the same batch that has begun."""
        self.target_cos_N, self.shared_target_cos_N = other.target_cos_N, other.shared_target_cos_N
        self.margin, self.target_logit_N = other.margin, other.target_logit_N

    def target_logits(self, cos_N: Tensor, margin: Margin) -> Tensor:
        """Return the logits of the samples' own classes, (N,)."""
        return margin.target_logits(cos_N)

    def negative_logits(self, cos_kN: Tensor) -> Tensor:
        """Return the logits of other classes, (k, N)."""
        return self.margin.negative_logits(cos_kN, self.shared_target_cos_N)

    def with_penalty(self, loss: Tensor) -> Tensor:
        """Return the loss plus the weighted mean of the margin's penalty."""
        penalty_N = self.margin.penalty()
        return loss if penalty_N is None else loss + torch.dot(self.weight_N, penalty_N)

    def target_gradients(self, error_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients by the target cosines, and by the lengths without the penalty, both (N,).

        Args:
            error_N: gradient by the target logits.
        """
        margin, norm_N = self._margin_of_norms()
        with torch.enable_grad():
            cos_N = self.target_cos_N.clone().requires_grad_()
            logit_N = self.target_logits(cos_N, margin)
        if norm_N is None:
            return torch.autograd.grad(logit_N, cos_N, error_N)[0], None
        inputs = (cos_N, norm_N)
        cos_gradient_N, norm_gradient_N = torch.autograd.grad(logit_N, inputs, error_N, materialize_grads=True)
        return cos_gradient_N, norm_gradient_N

    def penalty_gradient(self, coefficient_N: Tensor) -> Tensor | None:
        """Return the gradient of the penalty by the lengths (N,), weighted; None if there is none."""
        margin, norm_N = self._margin_of_norms()
        with torch.enable_grad():
            penalty_N = margin.penalty()
        if norm_N is None or penalty_N is None:
            return None
        return torch.autograd.grad(penalty_N, norm_N, coefficient_N, materialize_grads=True)[0]

    def _margin_of_norms(self) -> tuple[Margin, Tensor | None]:
        """Return the margin as a function of lengths that require a gradient; None if it does not depend on them."""
        if self.margin.norm_N is None:
            return self.margin, None
        norm_N = self.margin.norm_N.clone().requires_grad_()
        return self.margin.fixed(norm_N=norm_N), norm_N

    def refuse_changed_rows(self) -> None:
        """Raise a RuntimeError if the rows have changed since the forward pass."""
        if self.rows.changed:
            raise RuntimeError(
                "the class centers have changed since this loss was computed; call backward before the optimizer steps "
                "and before rows are loaded or written"
            )

    def targets(self, a: int, b: int) -> tuple[Tensor, Tensor]:
        """Return (position in the chunk, sample) of each target among active rows a to b."""
        begin, end = bisect_left(self.sorted_positions, a), bisect_left(self.sorted_positions, b)
        if begin == end:  # as in most chunks of many classes
            return self._no_targets
        samples = self.order_N[begin:end]
        return self.position_N[samples] - a, samples

    def own_target_cosines(self) -> Tensor:
        """Return each sample's cosine with its own class (N,); 0 where another process owns the class."""
        samples = self.order_N[bisect_left(self.sorted_positions, 0) :]
        cos_N = self.x_ND.new_zeros(len(self.x_ND))
        if len(samples):
            rows = self.rows.gather(self.position_N[samples])
            if self.target_column_N is not None:
                self.target_column_N[samples] = rows[:, -1]
            rows = self.directions(rows)
            if self.margin.normalize:
                rows = torch.nn.functional.normalize(rows, eps=MIN_NORM)
            cos_N[samples] = (self.x_ND[samples] * rows).sum(1)
        return cos_N

    def directions(self, rows_kD: Tensor) -> Tensor:
        """Return the columns of rows that are multiplied with embeddings: all but a bias beside directions."""
        columns = self.x_ND.shape[1]
        return rows_kD if rows_kD.shape[1] == columns else rows_kD[:, :columns]

    def measured(self, a: int, b: int) -> Tensor:
        """Return rows a to b without their bias, and keep their lengths and biases."""
        rows_kD = self.rows.slice(a, b)
        if self.column_K is not None:
            self.column_K[a:b] = rows_kD[:, -1]
        rows_kD = self.directions(rows_kD)
        if self.margin.normalize:
            self.norm_K[a:b] = torch.linalg.vector_norm(rows_kD, dim=1).clamp_(min=MIN_NORM)
        return rows_kD

    def cosines(self, a: int, b: int, rows_kD: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the cosines of rows a to b with the batch, (b - a, N); inner products without normalization."""
        # Rows are scaled before the product. Scaling the product would round cosines, and s multiplies that error.
        if self.margin.normalize:
            unit_kD = self.workspace.borrow("unit", tuple(rows_kD.shape), self.x_ND)
            rows_kD = torch.div(rows_kD, self.norm_K[a:b, None], out=unit_kD)
        return self.matmul.mm(rows_kD, self.x_ND.T, out=out)

    def _place_targets(self, position_N: Tensor) -> None:
        # Samples sorted by the position of their target, on the host, where a chunk finds its samples by bisection.
        host_N = position_N.cpu()
        order_N = torch.argsort(host_N, stable=True)
        self.sorted_positions: list[int] = host_N[order_N].tolist()
        self.position_N, self.order_N = position_N.to(self.x_ND.device), order_N.to(self.x_ND.device)
        self._no_targets = self.position_N[:0], self.order_N[:0]
