"""The plain softmax."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..core.options import documented
from .margin import Margin


@documented
@dataclass
class Softmax(Margin):
    """Plain softmax with logits w.x + b: nothing is normalized, and there is no margin.

    The bias is the last column of the rows, so that stores and optimizers of rows need no code for it.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=Softmax())
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    s: float = field(default=1.0, init=False, repr=False)
    max_negative_cosine: float | None = field(default=None, init=False, repr=False)

    normalize: ClassVar[bool] = False
