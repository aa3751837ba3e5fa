"""ElasticFace, a margin drawn for each sample."""

from dataclasses import dataclass

from torch import Tensor

from ..core.options import documented, option
from .batch import MarginBatch
from .combined import shifted
from .margin import Margin, begun, finite, one_of

DRAWS = "elastic margin"  # purpose of the random key


@documented
@dataclass
class ElasticFace(Margin):
    """ArcFace or CosFace whose margin is drawn for each sample from N(m, std^2).

    With `plus`, samples with lower target cosines get the larger ones of the batch's margins, as the paper states. The
    published code permutes the margins by the order of the cosines instead of by their ranks, which gives them to
    other samples. The angular margin continues beyond pi as that of `ArcFace` does; the published code does not.

    Source: Boutros et al., "ElasticFace: Elastic Margin Loss for Deep Face Recognition", CVPR Workshops 2022. Published
    values: kind="arc" with m=0.5 and std=0.05, or 0.0175 with plus; kind="cos" with m=0.35 and std=0.05, or 0.02 with
    plus.
    """

    m: float = option(0.5, 'Mean of the margins; 0.35 is usual with kind="cos".')
    std: float = option(0.05, "Standard deviation of the margins.")
    kind: str = option("arc", '"arc" adds the margin to the angle, "cos" subtracts it from the cosine.')
    plus: bool = option(False, "Give larger margins to samples with lower target cosines.")

    m_N: Tensor = begun()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m, self.std = finite("m", self.m), finite("std", self.std)
        one_of("kind", self.kind, ("arc", "cos"))
        if self.kind == "arc" and not 0 <= self.m < 2:
            raise ValueError(f"margin m={self.m:g} with kind='arc' must be in [0, 2); it is added to the angle")
        if self.std < 0:
            raise ValueError(f"margin std={self.std:g} must be at least 0; 0 gives all samples the margin m")

    @property
    def uses_target_cos(self) -> bool:  # type: ignore[override]
        return self.plus

    @property
    def needs_whole_batch(self) -> bool:  # type: ignore[override]
        return self.plus

    def begin(self, batch: MarginBatch, target_cos_N: Tensor) -> Margin:
        m_N = self.m + self.std * batch.normal(DRAWS)
        if self.plus:
            rank_N = target_cos_N.argsort(descending=True, stable=True).argsort()
            m_N = m_N.sort().values[rank_N]
        return self.fixed(m_N=m_N)

    def target(self, cos: Tensor) -> Tensor:
        return shifted(cos, self.m_N) if self.kind == "arc" else cos - self.m_N
