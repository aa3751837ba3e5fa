"""The mean of the backbone's gradients over the processes, once a step.

DistributedDataParallel would reduce in every micro-batch, and it changes the layout of its buckets after the first step
of a process. From three processes on, the order of a sum depends on where in a bucket a number lies, so a resumed
training would differ in its last bits from one that ran through. Here the layout depends on the parameters only. The
price: the reduction begins when backward ends.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; all of them call.

    A parameter that has no gradient on some processes counts as zero there, and one that has none on all keeps none.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        _average([parameter for parameter in trained if parameter.dtype == dtype])


def _average(parameters: list[nn.Parameter]) -> None:
    """One all-reduce for parameters of one dtype: their gradients, then for each whether there is one."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = gradients[0].new_tensor([p.grad is not None for p in parameters])
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), there]).div_(dist.get_world_size())
    dist.all_reduce(flat)
    *means, there = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for number, (parameter, mean) in enumerate(zip(parameters, means, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(mean.view_as(parameter))
        elif there[number] > 0:
            parameter.grad = mean.view_as(parameter).clone()
