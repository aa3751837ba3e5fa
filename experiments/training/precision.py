"""The precision that the backbone computes in; a head computes in its own, whatever this is."""

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
    plugin.scaler = None  # `LossScale` does that, past the head
    return plugin


class LossScale:
    """Keeps the backbone's float16 gradients from vanishing (Micikevicius et al. 2018, arXiv:1710.03740).

    Gradients are multiplied where they leave the head for the backbone, so that the head, which computes in float32,
    never meets the scale. When they overflow on any process, all skip the step and halve the scale.
    """

    def __init__(self, processes: Processes):
        several = processes.world_size > 1
        self.device = processes.device
        self.scaler = ShardedGradScaler(self.device.type) if several else torch.amp.GradScaler(self.device.type)

    def apply(self, embeddings: Tensor) -> Tensor:
        """The embeddings (n, D) in float32; their gradient will be scaled."""
        scaled: Tensor = _ScaledGradient.apply(embeddings, self.scaler.scale(torch.ones((), device=self.device)))
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer stepped; the same on all processes."""
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
        return embeddings.float()  # or the gradient would be rounded before it is scaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (gradient * ctx.scale).to(ctx.dtype), None
