"""The averaged copy of the backbone, from which the features of the pool come."""

import torch
from torch import nn


@torch.no_grad()
def move_towards(copy: nn.Module, backbone: nn.Module, momentum: float) -> None:
    """Move the parameters of the copy towards those of the backbone."""
    for ours, theirs in zip(copy.parameters(), backbone.parameters(), strict=True):
        ours.lerp_(theirs, 1 - momentum)


def take_buffers(copy: nn.Module, backbone: nn.Module) -> None:
    """Give the copy the backbone's floating buffers, such as running means."""
    for ours, theirs in zip(copy.buffers(), backbone.buffers(), strict=True):
        if ours.is_floating_point():
            ours.copy_(theirs)
