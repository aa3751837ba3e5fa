"""The loss of an objective as a node of the autograd graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.timer import Timer
from ..group.batch import GlobalBatch
from ..group.collectives import rank_and_size
from .row_gradient import RowGradient
from .streamed import Streamed

# A larger scale of the loss counts as an overflow, since the rows' gradient, divided by their length, might overflow.
LARGEST_SCALE = 2.0**64


def streamed_loss(
    batch: GlobalBatch,
    loss: Streamed,
    *,
    keep: bool,
    on_backward: Callable[[RowGradient, Tensor], None],
    timer: Timer,
) -> Tensor:
    """Return a loss as a scalar that backpropagates into this process's embeddings.

    Args:
        batch: the global batch, whose embeddings and lengths of this process are attached to the graph.
        loss: its loss over the active rows.
        keep: whether to keep K x N numbers from this pass for the next ones.
        on_backward: receives the gradient of the rows, and a boolean scalar that is False after an overflow. It is
            called when gradients are accumulated: by `backward`, but not by `torch.autograd.grad`. Backward itself
            changes no row.
        timer: measures "backward".
    """
    gradients: list[tuple[RowGradient, Tensor]] = []  # from backward passes
    leaf = None
    learns = torch.is_grad_enabled() and batch.x_nD.requires_grad
    if learns:
        # The rows are no parameters. This leaf takes their place: its hook runs when gradients are accumulated.
        leaf = batch.x_nD.new_zeros((), requires_grad=True)
        leaf.register_post_accumulate_grad_hook(lambda _: on_backward(*gradients.pop()))
    value: Tensor = _Loss.apply(batch.x_nD, batch.norm_n, leaf, loss, batch.start, keep, learns, gradients, timer)
    return value


def no_loss(batch: GlobalBatch, on_backward: Callable[[], None] | None) -> Tensor:
    """Return the loss of a batch without samples, 0, whose gradient is 0.

    Args:
        batch: the global batch, whose embeddings of this process are attached to the graph.
        on_backward: called when gradients are accumulated; None for nothing.
    """
    zero = batch.x_nD.sum() + batch.norm_n.sum()
    if on_backward is not None:
        leaf = zero.new_zeros((), requires_grad=True)
        leaf.register_post_accumulate_grad_hook(lambda _: on_backward())
        zero = zero + 0 * leaf
    return zero


class _Loss(torch.autograd.Function):
    """The value of a loss, and the gradient of the local embeddings."""

    @staticmethod
    def forward(ctx, x_nD, norm_n, leaf, loss, start, keep, learns, gradients, timer):  # type: ignore[no-untyped-def]
        ctx.loss, ctx.rows, ctx.gradients, ctx.timer = loss, slice(start, start + len(x_nD)), gradients, timer
        with torch.autocast(x_nD.device.type, enabled=False):
            return loss.loss(keep=keep, learns=learns)

    @staticmethod
    def backward(ctx, scale):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        with ctx.timer("backward", scale.device), torch.autocast(scale.device.type, enabled=False):
            gradient = ctx.loss.backward(scale)
        for unused, _ in ctx.gradients:  # computed by torch.autograd.grad and never accumulated
            unused.release()
        # All processes hold the same numbers, so they agree on an overflow without communication.
        finite = torch.isfinite(gradient.x_ND).all() & (scale.abs() <= LARGEST_SCALE)
        ctx.gradients[:] = [(gradient.rows, finite)]
        # This factor compensates DDP, which divides the backbone's gradient by the number of processes.
        world_size = rank_and_size(ctx.loss.group)[1]
        x_gradient_nD = gradient.x_ND[ctx.rows] * world_size
        norm_gradient_n = None if gradient.norm_N is None else gradient.norm_N[ctx.rows] * world_size
        return x_gradient_nD, norm_gradient_n, torch.zeros_like(scale), None, None, None, None, None, None


def with_known_gradients(loss: Tensor, gradients: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return a loss as a scalar that backpropagates gradients which were computed with it.

    Args:
        loss: the loss, a scalar without a graph.
        gradients: pairs of a tensor that is attached to the graph, and the gradient of the loss by it.
    """
    inputs, known = zip(*gradients, strict=True)
    value: Tensor = _KnownGradients.apply(loss, len(inputs), *inputs, *known)
    return value


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients were computed with it, so that what it was computed from may change before backward."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *inputs_and_gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs_and_gradients[count:])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_second_derivative()
        gradients = ctx.saved_tensors
        return None, None, *(gradient * scale for gradient in gradients), *(None for _ in gradients)


def refuse_second_derivative() -> None:
    """Raise a RuntimeError if autograd builds a graph of a backward pass that is not differentiable itself.

    Without this check, the derivative of the gradient would silently be that of a constant.
    """
    if torch.is_grad_enabled():  # in a backward pass only with create_graph=True
        raise RuntimeError(
            "the loss of a head cannot be differentiated twice, so create_graph=True must not reach it; "
            "compute gradient penalties on the embeddings or on another loss"
        )
