"""The gradient of a streamed loss with respect to its class rows.

Legend: N global batch, P targets, K active classes, k classes of a chunk, L and l their rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .rows import Rows

if TYPE_CHECKING:
    from .streamed import Streamed


class RowGradient:
    """The gradient of a loss by its active rows, computed for any range of them when needed.

    With G the gradient of the inner products w.x, and r its radial part, the gradient of rows w is G x - r w. Kept
    cosines are overwritten by G. Without them G is recomputed from the rows, which must not have changed since the
    forward pass.

    Args:
        loss: the loss, after its margin has begun.
        coefficient_N: weight of each sample.
        target_gradient_P: gradient by the target cosines.
        kept_LN: cosines, or memory for them, that G takes; None to recompute G.
        target_error_P: gradient by the target logits, if the gradient by a bias is wanted; else None.

    Attributes:
        bias_K: gradient by a bias that is added to all logits of a row.
        shared_bias: gradient by the bias that all classes share, summed over processes; None without one.
        scale: a factor that G and the gradients by biases do not contain; None for 1.
    """

    def __init__(
        self,
        loss: Streamed,
        coefficient_N: Tensor,
        target_gradient_P: Tensor,
        kept_LN: Tensor | None,
        target_error_P: Tensor | None = None,
    ):
        self.loss, self.coefficient_N, self.target_gradient_P = loss, coefficient_N, target_gradient_P
        self.kept_LN, self.target_error_P = kept_LN, target_error_P
        self.radial_L = None if kept_LN is None else loss.x_ND.new_zeros(len(loss.norm_L))
        self.bias_K = None if target_error_P is None else loss.x_ND.new_zeros(loss.num_rows)
        self.shared_bias: Tensor | None = None
        self.scale: Tensor | None = None
        self.sealed = False
        self.x_ND, self.factor = loss.x_ND, loss.x_ND.new_ones(())

    @property
    def kept_bytes(self) -> int:
        """Bytes of kept cosines or of G."""
        return 0 if self.kept_LN is None else self.kept_LN.nbytes

    @property
    def rows(self) -> Rows:
        """The rows that this gradient belongs to: the active rows, or those that the filter kept."""
        return self.loss.rows

    def seal(self) -> None:
        """Declare that the kept numbers are G from now on, no longer cosines."""
        self.sealed = True

    def release(self) -> None:
        """Return the memory of a gradient that is no longer needed to the workspace."""
        if self.kept_LN is not None:
            self.loss.workspace.release("cosines", self.kept_LN)
            self.kept_LN = None

    def multiply(self, factor: Tensor) -> None:
        """Multiply the gradients that are added from now on by a scalar tensor, without waiting for the device."""
        if self.scale is not None:
            factor = factor * self.scale
        self.x_ND, self.factor = self.loss.x_ND * factor, factor

    def add_to(
        self, total_lD: Tensor, a: int, b: int, rows_lD: Tensor, *, beta: float = 1.0, decay: float = 0.0
    ) -> Tensor:
        """Compute total_lD <- beta total_lD + gradient of the rows of classes a to b + decay rows_lD, and return it."""
        loss, own = self.loss, self.loss.block.rows(a, b)
        directions_lD, row_directions_lD = loss.directions(total_lD), loss.directions(rows_lD)
        if self.kept_LN is None:
            G_lN, radial_l = self._differentiate(a, b, loss.cosines(a, b, row_directions_lD))
        elif self.sealed:
            assert self.radial_L is not None
            G_lN, radial_l = self.kept_LN[own], self.radial_L[own]
        else:
            G_lN, radial_l = self._differentiate(a, b, self.kept_LN[own])
        loss.matmul.addmm_(directions_lD, G_lN, self.x_ND, beta=beta)
        directions_lD.addcmul_((decay - radial_l * self.factor)[:, None], row_directions_lD)
        if total_lD.shape[1] > self.x_ND.shape[1]:
            self._add_bias_to(total_lD[:, -1], a, b, rows_lD[:, -1], beta=beta, decay=decay)
        return total_lD

    def _add_bias_to(self, total_k: Tensor, a: int, b: int, bias_k: Tensor, *, beta: float, decay: float) -> None:
        assert self.bias_K is not None
        total_k.copy_(total_k * beta if beta else torch.zeros_like(total_k))
        total_k.add_(self.bias_K[a:b] * self.factor + decay * bias_k)

    def of_inner_products(self, a: int, b: int, rows_lD: Tensor) -> Tensor:
        """Return G of the rows of classes a to b: the gradient of their inner products with the batch, (l, N)."""
        if self.kept_LN is None:
            return self._differentiate(a, b, self.loss.cosines(a, b, rows_lD))[0]
        return self.replaced(a, b, self.kept_LN[self.loss.block.rows(a, b)])

    def replaced(self, a: int, b: int, cos_lN: Tensor) -> Tensor:
        """Return G of the rows of classes a to b, and keep it in place of their cosines if there is memory for it."""
        # Kept cosines are not needed any more: G takes their place.
        G_lN, radial_l = self._differentiate(a, b, cos_lN, out=None if self.kept_LN is None else cos_lN)
        if self.kept_LN is not None:
            assert not self.sealed and self.radial_L is not None
            own = self.loss.block.rows(a, b)
            self.radial_L[own] = radial_l
            self.kept_LN[own] = G_lN
        return G_lN

    def _differentiate(self, a: int, b: int, cos_lN: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return G (l, N) and the radial part (l,) from the cosines (l, N) of the rows of classes a to b.

        `out` is memory for a product (l, N).
        """
        loss, targets = self.loss, self.loss.placed.within(a, b)
        negative = loss.negative_gradient(a, b, loss.block.combined(cos_lN), self.coefficient_N)
        gradient_kN = negative.by_cos_kN
        if self.bias_K is not None and self.target_error_P is not None and negative.by_bias_k is not None:
            self.bias_K[a:b] = negative.by_bias_k.index_add_(0, targets.rows, self.target_error_P[targets.pairs])
        if len(targets.rows):
            gradient_kN[targets.at] = self.target_gradient_P[targets.pairs] / negative.slope
        gradient_lN = loss.block.spread(gradient_kN, cos_lN)
        if not loss.margin.normalize:
            return gradient_lN.mul_(negative.slope), gradient_lN.new_zeros(len(gradient_lN))
        norm_l = loss.norm_L[loss.block.rows(a, b)]
        gradient_lN = gradient_lN.div_(norm_l[:, None] / negative.slope)
        return gradient_lN, torch.mul(gradient_lN, cos_lN, out=out).sum(1).div_(norm_l)
