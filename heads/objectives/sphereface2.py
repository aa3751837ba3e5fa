"""SphereFace2: binary classifications with a margin on both sides of one learned threshold."""

import math
from dataclasses import dataclass

from torch import Tensor

from ..core.options import documented, number, option
from ..margins.arcface import straight
from ..margins.cosface import CosFace
from ..margins.margin import Margin
from .sigmoid import SigmoidObjective


@documented
@dataclass
class SphereFace2(SigmoidObjective):
    """Weighted softplus of -(r (g(cos) - m) + b) for the sample's class, and of r (g(cos) + m) + b for the others.

    g(cos) = 2 ((cos + 1) / 2)^t - 1 spreads the cosines, and the gradient passes it unchanged. r and m are scale and
    margin of `CosFace`, the only margin that can be used. b is a learned bias of all classes, whose initial value
    minimizes the loss at cos = 0.

    Source: Wen et al., "SphereFace2: Binary Classification is All You Need for Deep Face Recognition", ICLR 2022
    (variant C), and the code of OpenSphere. Published: CosFace(s=40, m=0.4), or CosFace(s=64, m=0.5) and
    positive_share=0.8 on MS1M.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=CosFace(s=16, m=0.2), objective=SphereFace2())
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    positive_share: float = option(0.7, "Weight of the sample's class, in (0, 1); the others have the rest each.")
    t: float = option(3.0, "Exponent that spreads the cosines, at least 1.")
    weight: float = option(50.0, "Weight of the loss, times 1 / r.")

    bias_sign = 1

    def __post_init__(self) -> None:
        if not 0 < number("positive_share", self.positive_share) < 1:
            raise ValueError(f"positive_share={self.positive_share} must be in (0, 1); the published value is 0.7")
        number("t", self.t, least=1)
        if not number("weight", self.weight) > 0:
            raise ValueError(f"weight={self.weight} must be above 0; the published value is 50")

    def weights(self, margin: Margin) -> tuple[float, float]:
        scale = self.weight / margin.s
        return self.positive_share * scale, (1 - self.positive_share) * scale

    def target_logits(self, cos_N: Tensor, margin: Margin) -> Tensor:
        assert isinstance(margin, CosFace)
        return margin.s * straight(cos_N, self._spread(cos_N) - margin.m)

    def negative_logits(self, cos_kN: Tensor, margin: Margin, target_cos_N: Tensor) -> Tensor:
        assert isinstance(margin, CosFace)
        return margin.filtered(margin.s * straight(cos_kN, self._spread(cos_kN) + margin.m), cos_kN)

    def slope(self, margin: Margin) -> float | None:
        return None

    def initial_bias(self, margin: Margin, active_classes: float) -> float:
        assert isinstance(margin, CosFace)
        r, m, share = margin.s, margin.m, self.positive_share
        z = share / ((1 - share) * max(active_classes - 1, 1))
        center = 2 * 0.5**self.t - 1
        positive, negative = r * (center - m), r * (center + m)
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(positive - negative))
        return math.log(2 * z) - negative - math.log(1 - z + root)

    def check(self, margin: Margin, *, samples: bool = False, log_q: bool = False, min_probability: float = 0) -> None:
        super().check(margin, samples=samples, log_q=log_q, min_probability=min_probability)
        if not isinstance(margin, CosFace):
            raise ValueError(
                f"margin={type(margin).__name__} cannot be used with objective=SphereFace2, whose margin has a form of "
                "its own; use CosFace, from which it takes s and m"
            )

    def _spread(self, cos: Tensor) -> Tensor:
        return 2 * ((cos.detach().clamp(-1, 1) + 1) / 2) ** self.t - 1
