"""MagFace, a margin that grows with the length of the embedding."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.options import documented, option
from .batch import MarginBatch
from .combined import checked_angle, sine
from .margin import Margin, finite, positive


@documented
@dataclass
class MagFace(Margin):
    """cos(theta + m(a)) for targets with cos > 0, else cos, and a penalty that rewards long embeddings.

    a is the length of the embedding, clipped to [shortest, longest], and m(a) a line between the two margins. The loss
    of a sample has the additional term penalty_weight (a / longest^2 + 1 / a). Gradients flow through a: the softmax
    shortens an embedding, and the penalty lengthens it. A clipped length gets no gradient, so a backbone whose
    embeddings begin shorter than `shortest` never leaves it; see docs/heads.md.

    Source: Meng et al., "MagFace: A Universal Representation for Face Recognition and Quality Assessment", CVPR 2021,
    and its code, whose margin is 0 where cos <= 0. With s = 64 and these margins a penalty_weight above 22.6 outweighs
    the softmax at `shortest`, so that no embedding stays there.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=MagFace(s=16))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    shortest: float = option(10.0, "Length of an embedding with the smallest margin.")
    longest: float = option(110.0, "Length of an embedding with the largest margin.")
    smallest: float = option(0.45, "Margin at `shortest`, in radians; in [0, pi).")
    largest: float = option(0.8, "Margin at `longest`, in radians; in [0, pi).")
    penalty_weight: float = option(35.0, "Weight of the penalty.")

    uses_target_cos: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shortest, self.longest = positive("shortest", self.shortest), finite("longest", self.longest)
        if not self.longest > self.shortest:
            raise ValueError(f"margin longest={self.longest:g} must be above shortest={self.shortest:g}")
        self.smallest, self.largest = checked_angle("smallest", self.smallest), checked_angle("largest", self.largest)
        self.penalty_weight = finite("penalty_weight", self.penalty_weight)
        if self.penalty_weight < 0:
            raise ValueError(f"margin penalty_weight={self.penalty_weight:g} must be at least 0; 0 switches it off")

    def begin(self, batch: MarginBatch, target_cos_N: Tensor) -> Margin:
        return self.fixed(norm_N=batch.norm_N)

    def target(self, cos: Tensor) -> Tensor:
        slope = (self.largest - self.smallest) / (self.longest - self.shortest)
        m_N = slope * (self._length_N() - self.shortest) + self.smallest
        return torch.where(cos > 0, cos * m_N.cos() - sine(cos) * m_N.sin(), cos)

    def penalty(self) -> Tensor:
        length_N = self._length_N()
        return self.penalty_weight * (length_N / self.longest**2 + 1 / length_N)

    def _length_N(self) -> Tensor:
        assert self.norm_N is not None
        return self.norm_N.clamp(self.shortest, self.longest)
