"""ArcFace, the additive angular margin."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.options import documented, option
from .combined import angular_target, checked_angle
from .margin import Margin, one_of


@documented
@dataclass
class ArcFace(Margin):
    """cos(theta + m) for the target, and cos - m sin(m) beyond theta + m = pi.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=ArcFace(s=16, m=0.2))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    m: float = option(0.5, "Added to the target's angle, in radians; in [0, pi).")
    gradient: str = option(
        "exact",
        '"exact", or "straight" as in insightface: the gradient passes the margin unchanged, and cos(theta + m) has no '
        "continuation beyond pi.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m = checked_angle("m", self.m)
        one_of("gradient", self.gradient, ("exact", "straight"))

    def target(self, cos: Tensor) -> Tensor:
        if self.gradient == "exact":
            return angular_target(cos, 1.0, self.m)
        return straight(cos, torch.cos(cos.detach().clamp(-1, 1).acos() + self.m))


def straight(cos: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the derivative 1 with respect to `cos` (a straight-through gradient)."""
    return value.detach() + (cos - cos.detach())
