"""The full head: the exact margin softmax over all classes, model-parallel over the processes."""

from typing import Unpack

from torch import Tensor

from .core.options import number
from .head import CenterHead, CenterOptions, Selection


class FullFC(CenterHead):
    """All classes take part in every step.

    Args:
        min_probability: rows whose largest probability over the batch is below this, and that are no sample's
            own class, stay out of the backward pass and the update; the loss remains exact. 0 for none.
        options: of `CenterHead`.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, *, min_probability: float = 0.0, **options: Unpack[CenterOptions]
    ):
        if not 0 <= number("min_probability", min_probability) < 1:
            raise ValueError(f"min_probability={min_probability}: must be in [0, 1); 0 leaves no row out")
        super().__init__(num_classes, embedding_size, **options)
        self.min_probability = min_probability

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        return Selection()
