"""Margins: what a head does to cosines before the softmax.

A margin is two elementwise functions, `target` for the cosine of a sample with its own class and
`negative` for its cosines with the others. Both are differentiated by autograd on the chunk, so a
new margin needs no closed-form gradient.

Legend: s scale of the logits, m margin, cos cosine, theta angle.
"""

import math

import torch
from torch import Tensor

from ..core.options import number

# Below this, sin^2 is rounding noise; holding it there keeps d cos(theta + m) / d cos finite at cos = +-1.
MIN_SIN_SQUARED = 1e-12


class Margin:
    """The plain scaled softmax over cosines, and the base of the others.

    Args:
        s: scale of the logits.
        max_negative_cosine: inter-class filter of PartialFC (An et al., CVPR 2022): negatives whose cosine
            lies above it are taken for conflicting classes and leave the softmax. None keeps all.
    """

    normalize = True  # rows and embeddings to unit length; False: plain inner products and a bias

    def __init__(self, s: float = 64.0, *, max_negative_cosine: float | None = None):
        if not _finite("s", s) > 0:
            raise ValueError(f"margin s={s}: the scale of the logits must be a positive number")
        if max_negative_cosine is not None and not -1 < max_negative_cosine <= 1:
            raise ValueError(
                f"margin max_negative_cosine={max_negative_cosine}: must be in (-1, 1], or null for no filter"
            )
        self.s = float(s)
        self.max_negative_cosine = max_negative_cosine

    def target(self, cos: Tensor) -> Tensor:
        """Target cosine, any shape -> the cosine that enters the softmax, before the scale."""
        return cos

    def negative(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        """Negative cosines (rows, N) and detached target cosines (N,) -> (rows, N), before the scale."""
        return cos

    def target_logits(self, cos: Tensor) -> Tensor:
        return self.s * self.target(cos)

    def negative_logits(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        logits = self.s * self.negative(cos, target_cos)
        if self.max_negative_cosine is not None:
            logits = logits.masked_fill(cos > self.max_negative_cosine, -math.inf)
        return logits

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class CosFace(Margin):
    """cos - m for the target (Wang et al., CVPR 2018)."""

    def __init__(self, s: float = 64.0, m: float = 0.4, *, max_negative_cosine: float | None = None):
        super().__init__(s, max_negative_cosine=max_negative_cosine)
        self.m = _finite("m", m)

    def target(self, cos: Tensor) -> Tensor:
        return cos - self.m


class CombinedMargin(Margin):
    """cos(m1 theta + m2) - m3 for the target (Deng et al., CVPR 2019).

    Where m1 theta + m2 would pass pi the cosine would rise again. There the target goes on as a line
    of slope 1 in cos below everything before it: cos - m2 sin(m2), ArcFace's own, for m1 = 1 and m2 up to 2.33,
    and the line that continues the curve for others.
    """

    def __init__(
        self,
        s: float = 64.0,
        m1: float = 1.0,
        m2: float = 0.0,
        m3: float = 0.0,
        *,
        max_negative_cosine: float | None = None,
    ):
        super().__init__(s, max_negative_cosine=max_negative_cosine)
        if not _finite("m1", m1) > 0:
            raise ValueError(f"margin m1={m1}: the factor on the angle must be positive; 1 leaves the angle as it is")
        if not 0 <= _finite("m2", m2) < math.pi:
            raise ValueError(f"margin m2={m2}: the angle added must lie in [0, pi)")
        self.m1, self.m2, self.m3 = float(m1), float(m2), _finite("m3", m3)

    def target(self, cos: Tensor) -> Tensor:
        sin = (1 - cos * cos).clamp(min=MIN_SIN_SQUARED).sqrt()
        if self.m1 == 1:
            inside = cos * math.cos(self.m2) - sin * math.sin(self.m2)
        else:
            inside = torch.cos(self.m1 * torch.atan2(sin, cos) + self.m2)
        last_angle = (math.pi - self.m2) / self.m1
        if last_angle < math.pi:
            drop = 1 + math.cos(last_angle)
            if self.m1 == 1:
                drop = max(drop, self.m2 * math.sin(self.m2))
            inside = torch.where(cos > math.cos(last_angle), inside, cos - drop)
        return inside - self.m3


class ArcFace(CombinedMargin):
    """cos(theta + m) for the target (Deng et al., CVPR 2019), cos - m sin(m) beyond theta + m = pi."""

    def __init__(self, s: float = 64.0, m: float = 0.5, *, max_negative_cosine: float | None = None):
        if not 0 <= _finite("m", m) < math.pi:
            raise ValueError(f"margin m={m}: the angle added must lie in [0, pi)")
        super().__init__(s, m2=m, max_negative_cosine=max_negative_cosine)


class SVSoftmax(Margin):
    """Hard negatives weigh more (Wang et al., AAAI 2020).

    The target is cos - m while cos exceeds m, so that it stays positive. A negative whose cosine exceeds the
    target's cos - m becomes t cos + t - 1.
    """

    def __init__(self, s: float = 64.0, m: float = 0.4, t: float = 1.2, *, max_negative_cosine: float | None = None):
        super().__init__(s, max_negative_cosine=max_negative_cosine)
        if not _finite("t", t) >= 1:
            raise ValueError(f"margin t={t}: the weight of hard negatives must be at least 1, which leaves them alone")
        self.m, self.t = _finite("m", m), float(t)

    def target(self, cos: Tensor) -> Tensor:
        return torch.where(cos > self.m, cos - self.m, cos)

    def negative(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        return torch.where(cos > target_cos - self.m, self.t * cos + (self.t - 1), cos)


class Softmax(Margin):
    """The plain softmax: logits w.x + b, nothing normalised, no margin.

    The bias is the last column of the rows, so that whatever holds and updates rows holds it too.
    """

    normalize = False

    def __init__(self) -> None:
        super().__init__(s=1.0)


def checked_margin(margin: object) -> Margin:
    """Return the margin, or raise a ValueError where it is no `Margin`."""
    if not isinstance(margin, Margin):
        raise ValueError(f"margin={margin!r} must be a margin object, such as margin=CosFace(s=64, m=0.4)")
    return margin


def _finite(name: str, value: float) -> float:
    if not math.isfinite(number(f"margin {name}", value)):
        raise ValueError(f"margin {name}={value} must be a finite number")
    return float(value)
