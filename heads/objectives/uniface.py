"""UniFace's unified cross-entropy: one learned threshold for all classes."""

import math
from dataclasses import dataclass

from ..core.options import documented, number, option
from ..margins.margin import Margin
from .sigmoid import SigmoidObjective


@documented
@dataclass
class UniFace(SigmoidObjective):
    """softplus(-(z_y - b)) + negative_weight * sum over the other active classes of softplus(z_j - b).

    z are the margin's logits, and b is a learned bias of all classes. It starts at log(10 A), with A active classes in
    a step. The sum over sampled negatives is not rescaled.

    Source: Zhou et al., "UniFace: Unified Cross-Entropy Loss for Deep Face Recognition", ICCV 2023, whose margin is
    CosFace(s=64, m=0.4). Its code also clips logits to [-s, s].

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=CosFace(s=16, m=0.2), objective=UniFace())
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    negative_weight: float = option(1.0, "Weight of the other classes.")

    def __post_init__(self) -> None:
        number("negative_weight", self.negative_weight, least=0)

    def weights(self, margin: Margin) -> tuple[float, float]:
        return 1.0, float(self.negative_weight)

    def initial_bias(self, margin: Margin, active_classes: float) -> float:
        return math.log(10 * active_classes)
