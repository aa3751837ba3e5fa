"""The fixed form of AdaCos, a scale that follows from the number of classes."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..core.options import documented
from .batch import MarginBatch
from .margin import Margin


@documented
@dataclass
class FixedAdaCos(Margin):
    """No margin, and the scale s = sqrt(2) log(C - 1), with C the number of classes of the loss.

    Source: Zhang et al., "AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face Representations",
    CVPR 2019. The dynamic form needs the cosines with all rows before the loss and is not offered.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=FixedAdaCos())
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    s: float = field(default=1.0, init=False, repr=False)  # `begin` sets it

    uses_target_cos: ClassVar[bool] = False
    needs_softmax: ClassVar[bool] = True

    def scale(self, num_classes: int) -> float:
        if num_classes < 3:
            raise ValueError(f"num_classes={num_classes} must be at least 3 for FixedAdaCos; use margin CosFace")
        return math.sqrt(2) * math.log(num_classes - 1)

    def begin(self, batch: MarginBatch, target_cos_N: Tensor) -> Margin:
        return self.fixed(s=self.scale(batch.num_classes))
