"""Matrix products of a head: in float32, or of inputs rounded to bfloat16 (`compute="bf16"`)."""

import torch
from torch import Tensor


class MatMul:
    """Matrix products in a given precision.

    With "bf16", CUDA sums and returns float32. On CPU, torch returns bfloat16, which rounds each result once more, by
    up to 2^-9 of its value.

    Args:
        compute: "fp32" multiplies the inputs unchanged; "bf16" rounds float32 inputs to bfloat16 first.

    Raises:
        ValueError: another `compute`.
    """

    def __init__(self, compute: str = "fp32"):
        if compute not in ("fp32", "bf16"):
            raise ValueError(f"compute={compute!r} must be 'fp32' or 'bf16'")
        self.compute = compute

    def mm(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the product a b, written to `out` if given."""
        if self.compute == "fp32":
            return torch.mm(a, b, out=out)
        product = self._rounded(a, b)
        return product.to(a.dtype) if out is None else out.copy_(product)

    def addmm_(self, total: Tensor, a: Tensor, b: Tensor, beta: float = 1.0) -> Tensor:
        """Compute total <- beta total + a b in place; beta = 0 ignores the values in `total`."""
        if self.compute == "fp32":
            return total.addmm_(a, b, beta=beta)
        product = self._rounded(a, b)
        return total.mul_(beta).add_(product) if beta else total.copy_(product)

    def _rounded(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.to(torch.bfloat16), b.to(torch.bfloat16)
        return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a, b)
