"""The combined margin on the target's angle and cosine."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.options import documented, option
from .margin import Margin, finite

# Below this, sin^2 is rounding noise. The bound keeps d cos(theta + m) / d cos finite at cos = +-1.
MIN_SIN_SQUARED = 1e-12


@documented
@dataclass
class CombinedMargin(Margin):
    """cos(m1 theta + m2) - m3 for the target; see `angular_target` for angles beyond pi.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=CombinedMargin(s=16, m1=1.0, m2=0.2, m3=0.1))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    m1: float = option(1.0, "Factor on the target's angle.")
    m2: float = option(0.0, "Added to the angle, in radians; in [0, pi).")
    m3: float = option(0.0, "Subtracted from the cosine.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m1, self.m2, self.m3 = finite("m1", self.m1), checked_angle("m2", self.m2), finite("m3", self.m3)
        if not self.m1 > 0:
            raise ValueError(f"margin m1={self.m1:g} must be positive; 1 leaves the angle unchanged")

    def target(self, cos: Tensor) -> Tensor:
        return angular_target(cos, self.m1, self.m2) - self.m3


def angular_target(cos: Tensor, m1: float, m2: float) -> Tensor:
    """Return cos(m1 theta + m2), continued so that it never falls when the cosine rises.

    Where m1 theta + m2 would exceed pi the cosine would rise again. From there on the result is a line of slope 1 in
    cos, below all values before it. For m1 = 1 and m2 up to 2.33 it is ArcFace's own cos - m2 sin(m2), otherwise the
    line that continues the curve.

    Args:
        cos: cosines, any shape.
        m1: factor on the angle.
        m2: added to the angle, in radians.
    """
    sin = sine(cos)
    if m1 == 1:
        inside = cos * math.cos(m2) - sin * math.sin(m2)
    else:
        inside = torch.cos(m1 * torch.atan2(sin, cos) + m2)
    last_angle = (math.pi - m2) / m1
    if last_angle < math.pi:
        drop = 1 + math.cos(last_angle)
        if m1 == 1:
            drop = max(drop, m2 * math.sin(m2))
        inside = torch.where(cos > math.cos(last_angle), inside, cos - drop)
    return inside


def shifted(cos: Tensor, m: Tensor) -> Tensor:
    """Return cos(theta + m) with a margin of its own for each sample, continued as `angular_target` is.

    Args:
        cos: (N,) cosines.
        m: (N,) added to the angles, in radians, below pi. A negative one moves an angle towards 0.
    """
    inside = cos * m.cos() - sine(cos) * m.sin()
    drop = torch.maximum(1 - m.cos(), m * m.sin())
    return torch.where((cos > -m.cos()) | (m <= 0), inside, cos - drop)


def sine(cos: Tensor) -> Tensor:
    """Return the sine of the angle between 0 and pi, with a finite derivative at 0 and pi."""
    return (1 - cos * cos).clamp(min=MIN_SIN_SQUARED).sqrt()


def checked_angle(name: str, value: float) -> float:
    """Return an angle option as a float, or raise a ValueError if it is not in [0, pi)."""
    if not 0 <= finite(name, value) < math.pi:
        raise ValueError(f"margin {name}={value} must be in [0, pi); it is added to the angle, in radians")
    return float(value)
