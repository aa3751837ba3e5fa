"""Gradient checkpointing: activations are computed again in the backward pass (Chen et al., arXiv 1604.06174, 2016)."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, gradient_checkpointing: bool) -> Tensor:
    """Return the output of blocks that run one after the other.

    Args:
        blocks: modules that map one tensor to one tensor.
        x: input of the first block.
        gradient_checkpointing: keep the inputs of blocks in training only, and compute all else again in the backward
            pass. Losses, gradients and batch statistics stay the same bit for bit.
    """
    for block in blocks:
        if gradient_checkpointing and block.training:
            x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
        else:
            x = block(x)
    return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second computation."""
    return nullcontext(), _statistics_at_rest(block)


@contextmanager
def _statistics_at_rest(block: nn.Module) -> Iterator[None]:
    """Leave running means and variances as they are: the first computation has added this batch already."""
    layers = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        # A momentum of 0 keeps the statistics, and the count of batches goes to a copy.
        layer.momentum = 0.0
        layer.num_batches_tracked = None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, batches
