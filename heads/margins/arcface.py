"""ArcFace, the additive angular margin."""

from dataclasses import dataclass

from torch import Tensor

from ..core.options import documented, option
from .combined import angular_target, checked_angle
from .margin import Margin


@documented
@dataclass
class ArcFace(Margin):
    """cos(theta + m) for the target, and cos - m sin(m) beyond theta + m = pi.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.
    """

    m: float = option(0.5, "Added to the target's angle, in radians; in [0, pi).")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m = checked_angle("m", self.m)

    def target(self, cos: Tensor) -> Tensor:
        return angular_target(cos, 1.0, self.m)
