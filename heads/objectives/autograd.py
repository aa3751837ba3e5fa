"""The margin softmax as a node of the autograd graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.timer import Timer
from ..group.collectives import rank_and_size
from .row_gradient import RowGradient
from .softmax import MarginSoftmax

# A larger scale of the loss counts as an overflow, since the rows' gradient, divided by their length, might overflow.
LARGEST_SCALE = 2.0**64


def streamed_loss(
    x_nD: Tensor,
    softmax: MarginSoftmax,
    *,
    start: int,
    keep: bool,
    on_backward: Callable[[RowGradient, Tensor], None],
    timer: Timer,
) -> Tensor:
    """Return the loss of `softmax` as a scalar that backpropagates into this process's embeddings.

    Args:
        x_nD: this process's part of `softmax.x_ND`, attached to the graph.
        softmax: the global batch and the active rows.
        start: position of `x_nD` in `softmax.x_ND`.
        keep: whether to keep the cosines of pass one for pass two.
        on_backward: receives the gradient of the rows, and a boolean scalar that is False after an overflow. It is
            called when gradients are accumulated: by `backward`, but not by `torch.autograd.grad`. Backward itself
            changes no row.
        timer: measures "backward".
    """
    gradients: list[tuple[RowGradient, Tensor]] = []  # from backward passes
    leaf = None
    if torch.is_grad_enabled() and x_nD.requires_grad:
        # The rows are no parameters. This leaf takes their place: its hook runs when gradients are accumulated.
        leaf = x_nD.new_zeros((), requires_grad=True)
        leaf.register_post_accumulate_grad_hook(lambda _: on_backward(*gradients.pop()))
    loss: Tensor = _Loss.apply(x_nD, leaf, softmax, start, keep, gradients, timer)
    return loss


class _Loss(torch.autograd.Function):
    """The loss of a `MarginSoftmax`, and the gradient of the local embeddings."""

    @staticmethod
    def forward(ctx, x_nD, leaf, softmax, start, keep, gradients, timer):  # type: ignore[no-untyped-def]
        ctx.softmax, ctx.rows, ctx.gradients, ctx.timer = softmax, slice(start, start + len(x_nD)), gradients, timer
        with torch.autocast(x_nD.device.type, enabled=False):
            return softmax.loss(keep=keep)

    @staticmethod
    def backward(ctx, scale):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        with ctx.timer("backward", scale.device), torch.autocast(scale.device.type, enabled=False):
            x_gradient_ND, row_gradient = ctx.softmax.backward(scale)
        for unused, _ in ctx.gradients:  # computed by torch.autograd.grad and never accumulated
            unused.release()
        # All processes hold the same numbers, so they agree on an overflow without communication.
        finite = torch.isfinite(x_gradient_ND).all() & (scale.abs() <= LARGEST_SCALE)
        ctx.gradients[:] = [(row_gradient, finite)]
        # This factor compensates DDP, which divides the backbone's gradient by the number of processes.
        world_size = rank_and_size(ctx.softmax.group)[1]
        return x_gradient_ND[ctx.rows] * world_size, torch.zeros_like(scale), None, None, None, None, None


def refuse_second_derivative() -> None:
    """Raise a RuntimeError if autograd builds a graph of a backward pass that is not differentiable itself.

    Without this check, the derivative of the gradient would silently be that of a constant.
    """
    if torch.is_grad_enabled():  # in a backward pass only with create_graph=True
        raise RuntimeError(
            "the loss of a head cannot be differentiated twice, so create_graph=True must not reach it; "
            "compute gradient penalties on the embeddings or on another loss"
        )
