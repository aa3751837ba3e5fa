"""Margin: what a head does to the cosines before the softmax.

A margin is a dataclass with two elementwise functions: `target` for the cosine of a sample with its own class, and
`negative` for its cosines with the others. Autograd differentiates both on the chunk, so that a new margin needs no
closed-form gradient.

Legend: s scale of the logits, m margin, cos cosine, theta angle.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from ..core.options import Configured, documented, number, option


@documented
@dataclass
class Margin(Configured):
    """Plain scaled softmax over cosines, and the base class of all margins.

    Raises:
        TypeError: an option that the margin does not have.
        ValueError: an option is out of range.
    """

    s: float = option(64.0, "Scale of the logits.")
    _: KW_ONLY
    max_negative_cosine: float | None = option(
        None,
        "Inter-class filter of PartialFC (An et al., CVPR 2022): negatives with a higher cosine leave the softmax, as "
        "conflicting classes. None keeps all.",
    )

    normalize: ClassVar[bool] = True  # rows and embeddings to unit length; False: inner products and a bias

    def __post_init__(self) -> None:
        self.s = finite("s", self.s)
        if not self.s > 0:
            raise ValueError(f"margin s={self.s:g} must be positive; it is the scale of the logits")
        if self.max_negative_cosine is not None and not -1 < self.max_negative_cosine <= 1:
            raise ValueError(
                f"margin max_negative_cosine={self.max_negative_cosine} must be in (-1, 1]; null for no filter"
            )

    def target(self, cos: Tensor) -> Tensor:
        """Return the cosine of a sample with its class that enters the softmax, before the scale; any shape."""
        return cos

    def negative(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        """Return the cosines with other classes that enter the softmax, before the scale.

        Args:
            cos: (rows, N).
            target_cos: (N,) cosines of the samples with their classes, detached.
        """
        return cos

    def target_logits(self, cos: Tensor) -> Tensor:
        """Return the logits of the samples' own classes."""
        return self.s * self.target(cos)

    def negative_logits(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        """Return the logits (rows, N) of other classes; -inf where the filter leaves a class out."""
        logits = self.s * self.negative(cos, target_cos)
        if self.max_negative_cosine is not None:
            logits = logits.masked_fill(cos > self.max_negative_cosine, -math.inf)
        return logits


def checked_margin(margin: object) -> Margin:
    """Return the margin, or raise a ValueError if it is not a `Margin`."""
    if not isinstance(margin, Margin):
        raise ValueError(f"margin={margin!r} must be a margin object, such as margin=CosFace(s=64, m=0.4)")
    return margin


def finite(name: str, value: float) -> float:
    """Return an option as a float, or raise a ValueError if it is not a finite number."""
    if not math.isfinite(number(f"margin {name}", value)):
        raise ValueError(f"margin {name}={value} must be a finite number")
    return float(value)
