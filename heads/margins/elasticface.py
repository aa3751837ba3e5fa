"""ElasticFace, a margin drawn for each sample."""

from dataclasses import dataclass

from torch import Tensor

from ..core.options import documented, option
from .batch import MarginBatch
from .combined import shifted
from .margin import Margin, begun, finite, one_of

DRAWS = "elastic margin"  # purpose of the random key
PUBLISHED_MEAN = {"arc": 0.5, "cos": 0.35}
PUBLISHED_STD = {("arc", False): 0.05, ("cos", False): 0.05, ("arc", True): 0.0175, ("cos", True): 0.02}


@documented
@dataclass
class ElasticFace(Margin):
    """ArcFace or CosFace whose margin is drawn for each sample from N(m, std^2).

    With `plus`, samples with lower target cosines get the larger ones of the batch's margins, as the paper states. The
    published code permutes the margins by the order of the cosines instead of by their ranks, which gives them to
    other samples. The angular margin continues beyond pi as that of `ArcFace` does; the published code does not.

    Source: Boutros et al., "ElasticFace: Elastic Margin Loss for Deep Face Recognition", CVPR Workshops 2022.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=ElasticFace(s=16, m=0.2, std=0.02))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    m: float | None = option(None, 'Mean of the margins. None for the published 0.5, or 0.35 with kind="cos".')
    std: float | None = option(
        None, 'Their standard deviation. None for the published 0.05; with plus 0.0175, or 0.02 for kind="cos".'
    )
    kind: str = option("arc", '"arc" adds the margin to the angle, "cos" subtracts it from the cosine.')
    plus: bool = option(False, "Give larger margins to samples with lower target cosines.")

    m_N: Tensor = begun()

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind", self.kind, ("arc", "cos"))
        self.m = PUBLISHED_MEAN[self.kind] if self.m is None else finite("m", self.m)
        self.std = PUBLISHED_STD[self.kind, bool(self.plus)] if self.std is None else finite("std", self.std)
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
        assert self.m is not None and self.std is not None
        m_N = self.m + self.std * batch.normal(DRAWS)
        if self.plus:
            rank_N = target_cos_N.argsort(descending=True, stable=True).argsort()
            m_N = m_N.sort().values[rank_N]
        return self.fixed(m_N=m_N)

    def target(self, cos: Tensor) -> Tensor:
        return shifted(cos, self.m_N) if self.kind == "arc" else cos - self.m_N
