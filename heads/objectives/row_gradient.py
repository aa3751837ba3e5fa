"""The gradient of a margin softmax with respect to its class rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .rows import Rows

if TYPE_CHECKING:
    from .softmax import MarginSoftmax


class RowGradient:
    """scale x d loss / d rows, computed for any range of active rows when needed.

    With G the gradient of the inner products w.x, and r its radial part, the gradient of rows w is G x - r w. Kept
    cosines are overwritten by G. Without them G is recomputed from the rows, which must not have changed since the
    forward pass.

    Args:
        softmax: the softmax, after its pass one.
        scale: scalar factor of the gradient.
    """

    def __init__(self, softmax: MarginSoftmax, scale: Tensor):
        self.softmax = softmax
        self.coefficient_N = softmax.weight_N * scale
        # The first gradient takes the kept cosines; a second backward pass through the same graph recomputes them.
        self.kept_KN, softmax.kept_KN = softmax.kept_KN, None
        self.radial_K = None if self.kept_KN is None else softmax.x_ND.new_zeros(softmax.num_rows)
        self.sealed = False
        self.x_ND, self.factor = softmax.x_ND, softmax.x_ND.new_ones(())
        with torch.enable_grad():
            cos_N = softmax.target_cos_N.clone().requires_grad_()
            logit_N = softmax.margin.target_logits(cos_N)
        target_p_N = (softmax.target_logit_N - softmax.max_N).exp() / softmax.sum_N
        target_error_N = (target_p_N - 1) * self.coefficient_N
        (self.target_gradient_N,) = torch.autograd.grad(logit_N, cos_N, target_error_N)

    @property
    def kept_bytes(self) -> int:
        """Bytes of kept cosines or of G."""
        return 0 if self.kept_KN is None else self.kept_KN.nbytes

    @property
    def rows(self) -> Rows:
        """The rows that this gradient belongs to: the active rows, or those that the filter kept."""
        return self.softmax.rows

    def seal(self) -> None:
        """Declare that the kept numbers are G from now on, no longer cosines."""
        self.sealed = True

    def release(self) -> None:
        """Return the memory of a gradient that is no longer needed to the workspace."""
        if self.kept_KN is not None:
            self.softmax.workspace.release("cosines", self.kept_KN)
            self.kept_KN = None

    def multiply(self, factor: Tensor) -> None:
        """Multiply the gradients that are added from now on by a scalar tensor, without waiting for the device."""
        self.x_ND, self.factor = self.softmax.x_ND * factor, factor

    def add_to(
        self, total_kD: Tensor, a: int, b: int, rows_kD: Tensor, *, beta: float = 1.0, decay: float = 0.0
    ) -> Tensor:
        """Compute total_kD <- beta total_kD + gradient of rows a to b + decay rows_kD in place, and return it."""
        softmax = self.softmax
        if self.kept_KN is not None:
            assert self.sealed and self.radial_K is not None
            G_kN, radial_k = self.kept_KN[a:b], self.radial_K[a:b]
        else:
            G_kN, radial_k = self._differentiate(a, b, softmax._cosines(a, b, rows_kD))
        softmax.matmul.addmm_(total_kD, G_kN, self.x_ND, beta=beta)
        return total_kD.addcmul_((decay - radial_k * self.factor)[:, None], rows_kD)

    def of_inner_products(self, a: int, b: int, rows_kD: Tensor) -> Tensor:
        """Return G of active rows a to b: the gradient of their inner products with the batch, (b - a, N)."""
        if self.kept_KN is None:
            return self._differentiate(a, b, self.softmax._cosines(a, b, rows_kD))[0]
        assert not self.sealed and self.radial_K is not None
        G_kN, self.radial_K[a:b] = self._differentiate(a, b, self.kept_KN[a:b])
        self.kept_KN[a:b] = G_kN
        return G_kN

    def _differentiate(self, a: int, b: int, cos_kN: Tensor) -> tuple[Tensor, Tensor]:
        """Return G (b - a, N) and the radial part (b - a,) from the cosines (b - a, N)."""
        softmax = self.softmax
        with torch.enable_grad():
            leaf_kN = cos_kN.detach().requires_grad_()
            logits_kN = softmax.margin.negative_logits(leaf_kN, softmax.target_cos_N)
        p_kN = logits_kN.detach()
        if softmax.log_q_K is not None:
            p_kN = p_kN - softmax.log_q_K[a:b, None]
        p_kN = (p_kN - softmax.max_N).exp_().mul_(self.coefficient_N / softmax.sum_N)
        targets = softmax.targets(a, b)
        p_kN[targets] = 0
        (gradient_kN,) = torch.autograd.grad(logits_kN, leaf_kN, p_kN)
        gradient_kN[targets] = self.target_gradient_N[targets[1]]
        if not softmax.margin.normalize:
            return gradient_kN, gradient_kN.new_zeros(b - a)
        norm_k = softmax.norm_K[a:b]
        gradient_kN = gradient_kN.div_(norm_k[:, None])
        return gradient_kN, (gradient_kN * cos_kN).sum(1).div_(norm_k)
