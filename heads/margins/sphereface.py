"""SphereFace, the multiplicative angular margin."""

import math
from dataclasses import dataclass

from torch import Tensor

from ..core.options import documented, option
from .arcface import straight
from .margin import Margin, one_of, positive


@documented
@dataclass
class SphereFace(Margin):
    """psi(theta) for the target, a monotone form of cos(m theta), with a straight-through gradient.

    variant="v0" is the original: (-1)^k cos(m theta) - 2 k with k = floor(m theta / pi). variant="v1" of SphereFace-R
    is cos(min(m theta, pi)). The gradient passes psi unchanged, as in SphereFace-R.

    Source: Liu et al., "SphereFace: Deep Hypersphere Embedding for Face Recognition", CVPR 2017, and "SphereFace
    Revived: Unifying Hyperspherical Face Recognition", TPAMI 2022; code of OpenSphere.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=SphereFace(s=16, m=1.4))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    s: float = option(30.0, "Scale of the logits.")
    m: float = option(1.7, "Factor on the target's angle, at least 1.")
    variant: str = option("v0", '"v0" or "v1".')

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m = positive("m", self.m)
        if self.m < 1:
            raise ValueError(f"margin m={self.m:g} must be at least 1; it multiplies the target's angle")
        one_of("variant", self.variant, ("v0", "v1"))

    def target(self, cos: Tensor) -> Tensor:
        angle = self.m * cos.detach().clamp(-1, 1).acos()
        if self.variant == "v1":
            return straight(cos, angle.clamp(max=math.pi).cos())
        k = (angle / math.pi).floor()
        return straight(cos, (1 - 2 * k.remainder(2)) * angle.cos() - 2 * k)
