"""The mean of the backbone's gradients over the processes, computed once a step.

DistributedDataParallel would reduce in every micro-batch, and it changes the layout of its buckets after the first step
of a process. With three or more processes the order of a sum depends on the position of a number in its bucket, so a
resumed training would differ in its last bits from an uninterrupted one. Here the layout depends on the parameters
only. The disadvantage is that the reduction begins when backward ends.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes. All processes must call this.

    A missing gradient counts as zero if another process has one, and stays missing otherwise.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        _average([parameter for parameter in trained if parameter.dtype == dtype])


def _average(parameters: list[nn.Parameter]) -> None:
    """Reduce gradients of one dtype in one all-reduce: the gradients, then flags that state which exist."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    exists = gradients[0].new_tensor([p.grad is not None for p in parameters])
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), exists]).div_(dist.get_world_size())
    dist.all_reduce(flat)
    *means, exists = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for number, (parameter, mean) in enumerate(zip(parameters, means, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(mean.view_as(parameter))
        elif exists[number] > 0:
            parameter.grad = mean.view_as(parameter).clone()
