"""The margin softmax as a node of the autograd graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.timer import Timer
from ..group.collectives import rank_and_size
from .row_gradient import RowGradient
from .softmax import MarginSoftmax

# A loss scaled beyond it counts as an overflow: the rows' gradient, larger by one over their length, might be one.
LARGEST_SCALE = 2.0**64


def streamed_loss(
    x_nD: Tensor,
    softmax: MarginSoftmax,
    *,
    start: int,
    keep: bool,
    on_backward: Callable[[RowGradient, Tensor], None],
    clock: Timer,
) -> Tensor:
    """The loss of `softmax` as a scalar that backpropagates into this process's embeddings.

    Args:
        x_nD: this process's part of `softmax.x_ND`, at `start`, attached to the graph.
        keep: hold the cosines from pass one for pass two.
        on_backward: receives the gradient of the rows, and a boolean scalar that is false where it overflowed, when
            gradients are accumulated, as `backward` does and `torch.autograd.grad` does not; backward itself changes
            no row.
        clock: takes the time of "backward".
    """
    made: list[tuple[RowGradient, Tensor]] = []  # by backward passes through this loss
    leaf = None
    if torch.is_grad_enabled() and x_nD.requires_grad:
        # Stands for the rows, which are no parameters: autograd tells when their gradient would be accumulated.
        leaf = x_nD.new_zeros((), requires_grad=True)
        leaf.register_post_accumulate_grad_hook(lambda _: on_backward(*made.pop()))
    loss: Tensor = _Loss.apply(x_nD, leaf, softmax, start, keep, made, clock)
    return loss


class _Loss(torch.autograd.Function):
    """Hangs a `MarginSoftmax` into autograd: the local embeddings get their slice of the gradient."""

    @staticmethod
    def forward(ctx, x_nD, leaf, softmax, start, keep, made, clock):  # type: ignore[no-untyped-def]
        ctx.softmax, ctx.rows, ctx.made, ctx.clock = softmax, slice(start, start + len(x_nD)), made, clock
        with torch.autocast(x_nD.device.type, enabled=False):
            return softmax.loss(keep=keep)

    @staticmethod
    def backward(ctx, scale):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        with ctx.clock("backward", scale.device), torch.autocast(scale.device.type, enabled=False):
            x_gradient_ND, row_gradient = ctx.softmax.backward(scale)
        for earlier, _ in ctx.made:  # that nobody has accumulated
            earlier.release()
        # One more pass over numbers that all processes hold alike: they agree on an overflow without a message.
        finite = torch.isfinite(x_gradient_ND).all() & (scale.abs() <= LARGEST_SCALE)
        ctx.made[:] = [(row_gradient, finite)]
        # DDP divides the backbone's gradient by the number of processes: this factor meets that.
        world_size = rank_and_size(ctx.softmax.group)[1]
        return x_gradient_ND[ctx.rows] * world_size, torch.zeros_like(scale), None, None, None, None, None


def refuse_second_derivative() -> None:
    """Raise where autograd builds a graph of a backward pass that is not differentiable itself.

    Without it the derivative of the gradient would silently be that of a constant.
    """
    if torch.is_grad_enabled():  # in a backward pass only where create_graph=True
        raise RuntimeError(
            "the loss of a head cannot be differentiated twice, so create_graph=True must not reach it; "
            "compute gradient penalties on the embeddings or on another loss"
        )
