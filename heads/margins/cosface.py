"""CosFace, the additive cosine margin."""

from dataclasses import dataclass

from torch import Tensor

from ..core.options import documented, option
from .margin import Margin, finite


@documented
@dataclass
class CosFace(Margin):
    """cos - m for the target.

    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=CosFace(s=16, m=0.2))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    m: float = option(0.4, "Subtracted from the target's cosine.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.m = finite("m", self.m)

    def target(self, cos: Tensor) -> Tensor:
        return cos - self.m
