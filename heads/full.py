"""The full head: the exact margin softmax over all classes, model-parallel over the processes."""

from typing import Unpack

from torch import Tensor

from .head import CenterHead, CenterOptions, Selection
from .options import number


class FullFC(CenterHead):
    """All classes take part in every step.

    Args:
        filter_below: rows whose largest probability over the batch is below this, and that are no sample's
            own class, stay out of the backward pass and the update; the loss remains exact. 0 for none.
        options: of `CenterHead`.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, *, filter_below: float = 0.0, **options: Unpack[CenterOptions]
    ):
        if not 0 <= number("filter_below", filter_below) < 1:
            raise ValueError(f"filter_below={filter_below}: a probability in [0, 1) is needed; 0 leaves nothing out")
        super().__init__(num_classes, embedding_size, **options)
        self.filter_below = filter_below

    def select(self, embeddings: Tensor, labels: Tensor) -> Selection:
        return Selection()
