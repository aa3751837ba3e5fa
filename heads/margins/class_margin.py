"""Margins by class frequency."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.options import documented, option
from .batch import MarginBatch
from .combined import shifted
from .margin import Margin, begun, finite, one_of


@documented
@dataclass
class ClassMargin(Margin):
    """ArcFace or CosFace with the margin a n^-k + b, where n is the number of training examples of the sample's class.

    Rare classes get larger margins. The head needs `class_counts`.

    Source: Ha et al., "Google Landmark Recognition 2020 Competition Third Place Solution", 2020 (dynamic margins, with
    these defaults; its code also scales them to [0.05, 0.5]). LDAM (Cao et al., NeurIPS 2019) is kind="cos", k=1/4, b=0
    and a = 0.5 n^(1/4) for the n of the rarest class.

    Examples:
        >>> counts = torch.randint(1, 100, (1000,))
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=ClassMargin(s=16), class_counts=counts)
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    a: float = option(0.5, "Factor on n^-k.")
    k: float = option(0.25, "Exponent of the class frequency n.")
    b: float = option(0.05, "Margin of very frequent classes.")
    kind: str = option("arc", '"arc" adds the margin to the angle, "cos" subtracts it from the cosine.')

    m_N: Tensor = begun()

    uses_target_cos: ClassVar[bool] = False
    uses_class_counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.a, self.k, self.b = finite("a", self.a), finite("k", self.k), finite("b", self.b)
        one_of("kind", self.kind, ("arc", "cos"))
        if self.k < 0:
            raise ValueError(f"margin k={self.k:g} must be at least 0; n^-k falls with the frequency n")
        if self.kind == "arc" and not (self.a >= 0 and self.b >= 0 and self.a + self.b < math.pi):
            raise ValueError(
                f"margin a={self.a:g}, b={self.b:g} with kind='arc' must be at least 0 and together below pi; a class "
                "with one example gets the margin a + b, in radians"
            )

    def begin(self, batch: MarginBatch, target_cos_N: Tensor) -> Margin:
        assert batch.class_counts_N is not None
        return self.fixed(m_N=self.a * batch.class_counts_N.to(batch.norm_N).clamp(min=1) ** -self.k + self.b)

    def target(self, cos: Tensor) -> Tensor:
        return shifted(cos, self.m_N) if self.kind == "arc" else cos - self.m_N
