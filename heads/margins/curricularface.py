"""CurricularFace, a margin that gives hard negatives more weight as training proceeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from ..core.options import documented, option
from .batch import MarginBatch
from .combined import angular_target, checked_angle, sine
from .margin import Margin, begun, finite


@documented
@dataclass
class CurricularFace(Margin):
    """ArcFace whose negatives with cos > cos(theta_y + m) become cos (t + cos).

    theta_y is the angle to the sample's own class. t is the running mean of the target cosines: it grows as training
    proceeds, and with it the weight of hard negatives.

    Source: Huang et al., "CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition", CVPR 2020, and
    its code.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=CurricularFace(s=16, m=0.2))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    m: float = option(0.5, "Added to the target's angle, in radians; in [0, pi).")
    weight: float = option(0.01, "Weight, in (0, 1], of a batch in the running mean of the target cosines.")

    hardness: Tensor = begun()

    initial_state: ClassVar[Mapping[str, float]] = MappingProxyType({"t": 0.0})
    uses_target_cos: ClassVar[bool] = True
    needs_whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m = checked_angle("m", self.m)
        if not 0 < finite("weight", self.weight) <= 1:
            raise ValueError(f"margin weight={self.weight} must be in (0, 1]; the published value is 0.01")

    def begin(self, batch: MarginBatch, target_cos_N: Tensor) -> Margin:
        hardness = self.weight * target_cos_N.mean() + (1 - self.weight) * batch.state["t"]
        return self.fixed(hardness=hardness, state={"t": hardness})

    def target(self, cos: Tensor) -> Tensor:
        return angular_target(cos, 1.0, self.m)

    def negative(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        shifted_cos = target_cos * math.cos(self.m) - sine(target_cos) * math.sin(self.m)
        return torch.where(cos > shifted_cos, cos * (self.hardness + cos), cos)
