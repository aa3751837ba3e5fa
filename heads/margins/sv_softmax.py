"""SV-Softmax, a margin that gives hard negatives more weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.options import documented, option
from .margin import Margin, finite


@documented
@dataclass
class SVSoftmax(Margin):
    """CosFace with more weight for hard negatives.

    The target is cos - m while cos exceeds m, so that it stays positive. A negative whose cosine exceeds the target's
    cos - m becomes t cos + t - 1.

    Source: Wang et al., "Mis-Classified Vector Guided Softmax Loss for Face Recognition", AAAI 2020.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=SVSoftmax(s=16, m=0.2))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    m: float = option(0.4, "Subtracted from the target's cosine.")
    t: float = option(1.2, "Weight of hard negatives, at least 1. 1 leaves them unchanged.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m, self.t = finite("m", self.m), finite("t", self.t)
        if not self.t >= 1:
            raise ValueError(f"margin t={self.t:g} must be at least 1; 1 leaves hard negatives unchanged")

    def target(self, cos: Tensor) -> Tensor:
        return torch.where(cos > self.m, cos - self.m, cos)

    def negative(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        return torch.where(cos > target_cos - self.m, self.t * cos + (self.t - 1), cos)
