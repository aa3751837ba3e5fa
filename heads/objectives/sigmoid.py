"""Losses with one threshold for all classes: a sum over the classes, streamed in one pass over the rows.

Each logit z has a loss of its own, softplus(-z) for the sample's class and softplus(z) for the others, with a weight.
Nothing normalizes the logits. So the forward pass computes the gradient too; no maximum and no sum of exponentials goes
over processes, and most margins need no target cosines from other processes.

Legend: N global batch, D columns of an embedding, k classes of a chunk, L and l the rows of all and of a chunk.
"""

import copy
import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ..group.collectives import sum_over_processes
from ..margins.margin import Margin
from .inputs import LossGradient, LossInputs, NegativeGradient
from .objective import Objective
from .row_gradient import RowGradient
from .softmax import LINEAR, chunks
from .streamed import Streamed


class SigmoidObjective(Objective):
    """Base class of the objectives whose loss is a sum over classes."""

    bias = "shared"
    passes = 1
    sums = (0, 2)  # the loss and the gradient of the bias
    bias_sign = -1  # the bias is subtracted from the logits or added to them

    @abstractmethod
    def weights(self, margin: Margin) -> tuple[float, float]:
        """Return the weights of the sample's class and of each other class."""

    def streamed(self, inputs: LossInputs) -> "SigmoidLoss":
        self.check(inputs.margin, log_q=inputs.log_q_K is not None, min_probability=inputs.min_probability)
        return SigmoidLoss(inputs, self)

    def target_logits(self, cos_N: Tensor, margin: Margin) -> Tensor:
        """Return the logits (N,) of the samples' own classes, without the bias."""
        return margin.target_logits(cos_N)

    def negative_logits(self, cos_kN: Tensor, margin: Margin, target_cos_N: Tensor) -> Tensor:
        """Return the logits (k, N) of other classes, without the bias; -inf for a class that takes no part."""
        return margin.negative_logits(cos_kN, target_cos_N)

    def slope(self, margin: Margin) -> float | None:
        """Return the scale if the negative logits are no more than scale x cosine, else None."""
        return margin.slope if margin.max_negative_cosine is None else None

    def check(self, margin: Margin, *, samples: bool = False, log_q: bool = False, min_probability: float = 0) -> None:
        name, margin_name = type(self).__name__, type(margin).__name__
        if margin.needs_softmax:
            raise ValueError(
                f"margin={margin_name} derives its scale for the softmax and cannot be used with objective={name}; use "
                "a margin with a scale of its own, such as CosFace, or the objective softmax"
            )
        if not margin.normalize and self.bias == "shared":
            raise ValueError(
                f"margin={margin_name} does not normalize and has a bias for each class, so objective={name}, with one "
                "bias for all classes, cannot be used; use a margin such as CosFace, or the objective bce"
            )
        if log_q:
            raise ValueError(
                f"log_q=True corrects the sum of a sampled softmax, and objective={name} has none; set log_q to False"
            )
        if min_probability:
            raise ValueError(
                f"min_probability={min_probability:g} compares the probabilities of a softmax, and objective={name} "
                "has none; set min_probability to 0"
            )


class SigmoidLoss(Streamed):
    """The loss of a `SigmoidObjective` on one global batch over this process's active rows."""

    averages = False

    def __init__(self, inputs: LossInputs, objective: SigmoidObjective):
        super().__init__(inputs)
        self.objective, self.bias = objective, None if inputs.bias is None else inputs.bias[0, 0].clone()
        self.positive_weight, self.negative_weight = objective.weights(inputs.margin)
        if objective.bias == "class" and inputs.margin.normalize:
            self.column_K, self.target_column_P = self.x_ND.new_zeros(self.num_rows), torch.zeros_like(self.weight_P)
        self.has_bias = self.bias is not None or self.column_K is not None
        self.sum: Tensor | None = None  # the loss so far, in the first pass

    def loss(self, *, keep: bool, learns: bool) -> Tensor:
        """Compute the loss and, if `learns`, its gradient; `keep` keeps that of the products. See `Streamed`."""
        self.begin(needs_target_cos=False)
        z_P, own_P = self._z(self.target_logit_P, self.target_column_P), self.placed.position_P >= 0
        own_loss_P = torch.where(own_P, self.positive_weight * softplus(-z_P, threshold=LINEAR), 0)
        self.sum = torch.dot(self.weight_P, own_loss_P).double()
        if learns:
            error_P = torch.where(own_P, -self.positive_weight * self.weight_P * (-z_P).sigmoid(), 0)
            cos_gradient_P, self.norm_gradient_N = self.target_gradients(error_P)
            kept_LN = self.acquired_cosines() if keep else None
            bias_error_P = error_P if self.has_bias else None
            self.gradient = RowGradient(self, self.weight_N, cos_gradient_P, kept_LN, bias_error_P)
            self.x_gradient_ND = torch.zeros_like(self.x_ND)
        for a, b in chunks(self.num_rows):
            if not learns:
                self.logit_gradient(a, b, self.negative_logits(self.class_cosines(a, b)), self.weight_N)
                continue
            rows_lD = self.measured(a, b)
            kept_lN = None if kept_LN is None else kept_LN[self.block.rows(a, b)]
            cos_lN = self.cosines(a, b, rows_lD, out=kept_lN)
            self.matmul.addmm_(self.x_gradient_ND, self.gradient.replaced(a, b, cos_lN).T, rows_lD)
        loss, self.sum = sum_over_processes(self.sum, self.group).to(self.x_ND.dtype), None
        return self.with_penalty(loss)

    def backward(self, scale: Tensor) -> LossGradient:
        """Return the gradient, most of which `loss` has computed. See `Streamed`."""
        self.refuse_changed_rows()
        # A second backward pass through the same graph recomputes the gradient of the products.
        gradient, self.gradient = self.gradient, copy.copy(self.gradient)
        self.gradient.kept_LN = None
        gradient.seal()
        gradient.scale = scale
        parts = [self.x_gradient_ND]
        if self.norm_gradient_N is not None:
            parts.append(self.norm_gradient_N)
        if self.bias is not None:
            assert gradient.bias_K is not None
            parts.append(self.objective.bias_sign * gradient.bias_K.sum())
        sums = sum_over_processes(torch.cat([part.flatten() for part in parts]), self.group)
        x_gradient_ND, *others = sums.split([part.numel() for part in parts])
        if self.bias is not None:
            gradient.shared_bias = others.pop().view(1, 1)
        norm_gradient_N = others.pop() * scale if others else None
        norm_gradient_N = self.with_penalty_gradient(norm_gradient_N, self.mean_weight_P * scale)
        return LossGradient(x_gradient_ND.view_as(self.x_ND) * scale, norm_gradient_N, gradient)

    def target_logits(self, cos_N: Tensor, margin: Margin) -> Tensor:
        return self.objective.target_logits(cos_N, margin)

    def negative_logits(self, cos_kN: Tensor) -> Tensor:
        return self.objective.negative_logits(cos_kN, self.margin, self.shared_target_cos_P)

    def logit_gradient(self, a: int, b: int, logits_kN: Tensor, coefficient_N: Tensor) -> Tensor:
        return self._gradient_by_z(a, b, self._z(logits_kN, self._column(a, b)), coefficient_N)

    def negative_gradient(self, a: int, b: int, cos_kN: Tensor, coefficient_N: Tensor) -> NegativeGradient:
        slope = self.objective.slope(self.margin)
        if slope is None:
            return super().negative_gradient(a, b, cos_kN, coefficient_N)
        # The logits are slope x cosine: without autograd, a third of the passes over K x N numbers is saved.
        z_kN = self.workspace.borrow("logits", tuple(cos_kN.shape), cos_kN)
        bias = self._column(a, b) if self.bias is None else self.objective.bias_sign * self.bias
        torch.add(cos_kN.new_zeros(()) if bias is None else bias, cos_kN, alpha=slope, out=z_kN)
        gradient_kN = self._gradient_by_z(a, b, z_kN, coefficient_N)
        return NegativeGradient(gradient_kN, gradient_kN.sum(1) if self.has_bias else None, slope)

    def _gradient_by_z(self, a: int, b: int, z_kN: Tensor, coefficient_N: Tensor) -> Tensor:
        """Return the gradient by logits with their bias, in place, and in the first pass add their loss to `sum`."""
        positives = self.placed_positives.within(a, b)
        if len(positives.rows):
            z_kN[positives.at] = -math.inf
        if self.sum is not None:
            losses_N = softplus(z_kN, threshold=LINEAR).sum(0)
            self.sum += self.negative_weight * torch.dot(self.weight_N, losses_N)
        return z_kN.sigmoid_().mul_(self.negative_weight * coefficient_N)

    def log_pull(self, a: int, b: int, cos_kN: Tensor) -> Tensor:
        return logsigmoid(self._z(self.negative_logits(cos_kN), self._column(a, b)))

    def _z(self, logits: Tensor, column: Tensor | None) -> Tensor:
        """Return logits with their bias, as a new tensor."""
        if column is not None:
            return logits + column
        return logits + self.objective.bias_sign * self.bias if self.bias is not None else logits.clone()

    def _column(self, a: int, b: int) -> Tensor | None:
        return None if self.column_K is None else self.column_K[a:b, None]
