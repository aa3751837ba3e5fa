"""The precision of the backbone. A head has its own precision."""

from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from ..launching.processes import Processes
from ..models.backbone import check_precision


def plugin_for(precision: str, device: torch.device) -> Precision:
    check_precision(precision)
    if precision == "32-true":
        return Precision()
    plugin = MixedPrecision(precision, device.type)  # type: ignore[arg-type]
    plugin.scaler = None  # `LossScale` scales behind the head
    return plugin


class LossScale:
    """Loss scaling, which prevents float16 gradients of the backbone from underflowing.

    The gradient is multiplied where it passes from the head to the backbone, so that the scale never reaches the head,
    which computes in float32. If a gradient overflows on any process, all processes skip the step and halve the scale.

    Source: Micikevicius et al. 2018, arXiv:1710.03740.
    """

    def __init__(self, processes: Processes):
        self.device = processes.device
        scaler = ShardedGradScaler if processes.world_size > 1 else torch.amp.GradScaler
        self.scaler = scaler(self.device.type)

    def apply(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings (n, D) in float32 with a scaled gradient."""
        scaled: Tensor = _ScaledGradient.apply(embeddings, self.scaler.scale(torch.ones((), device=self.device)))
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Step the optimizer unless a gradient overflowed; return whether it stepped, the same on all processes."""
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, scale: Tensor) -> Tensor:
        ctx.scale = scale
        ctx.dtype = embeddings.dtype
        return embeddings.float()  # the gradient must not be rounded before it is scaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (gradient * ctx.scale).to(ctx.dtype), None
