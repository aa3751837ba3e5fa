"""AdaFace, a margin that grows or falls with the quality of an image."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from ..core.options import documented, option
from .batch import MarginBatch
from .margin import Margin, begun, finite

EPS = 1e-3  # of the authors' code: keeps cosines from 1, angles from 0 and pi, and the deviation from 0
SHORTEST, LONGEST = 1e-3, 100.0  # lengths are clipped to this range


@documented
@dataclass
class AdaFace(Margin):
    """cos(theta - m z) - (m + m z) for the target, with z in [-1, 1] the quality of the image.

    Quality is the length of the embedding: z is the length minus its running mean, over its running deviation, times
    h, clipped. No gradient flows through it. Lengths say little after a last batch normalization; see docs/heads.md.
    Mean and deviation are those of the batch of all processes, whatever the weights of the samples.

    Source: Kim et al., "AdaFace: Quality Adaptive Margin for Face Recognition", CVPR 2022, and its code.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=AdaFace(s=16, m=0.2))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    m: float = option(0.4, "Margin, in radians and as a cosine; in [0, pi / 2).")
    h: float = option(0.333, "Value of z one deviation above the mean length; with 0 the margin is CosFace.")
    t: float = option(0.01, "Weight, in (0, 1], of a batch in the running mean and deviation of the lengths.")

    quality_N: Tensor = begun()

    initial_state: ClassVar[Mapping[str, float]] = MappingProxyType({"mean": 20.0, "std": 100.0})
    uses_target_cos: ClassVar[bool] = False
    needs_whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= finite("m", self.m) < math.pi / 2:
            raise ValueError(f"margin m={self.m} must be in [0, pi / 2); the published value is 0.4")
        if finite("h", self.h) < 0:
            raise ValueError(f"margin h={self.h} must be at least 0; the published value is 0.333")
        if not 0 < finite("t", self.t) <= 1:
            raise ValueError(f"margin t={self.t} must be in (0, 1]; the published value is 0.01")

    def begin(self, batch: MarginBatch, target_cos_N: Tensor) -> Margin:
        norm_N, state = batch.norm_N.clamp(SHORTEST, LONGEST), batch.state
        all_norms = batch.sample_norms.clamp(SHORTEST, LONGEST)
        if len(all_norms) > 1:  # one sample has no deviation
            latest = {"mean": all_norms.mean(), "std": all_norms.std()}
            state = {name: self.t * latest[name] + (1 - self.t) * state[name] for name in state}
        quality_N = self.h * (norm_N - state["mean"]) / (state["std"] + EPS)
        return self.fixed(quality_N=quality_N.clamp(-1, 1), state=state)

    def target(self, cos: Tensor) -> Tensor:
        theta = self.negative(cos, cos).acos() - self.m * self.quality_N
        return theta.clamp(EPS, math.pi - EPS).cos() - (self.m + self.m * self.quality_N)

    def negative(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        return cos.clamp(-1 + EPS, 1 - EPS)
