"""No backbone: the data are the embeddings. With a head alone this is a linear probe."""

import math
from collections.abc import Sequence

from torch import Tensor, nn


class NoBackbone(nn.Module):
    """The identity, without parameters. Images are flattened.

    Args:
        input_shape: shape of an example, (D,) or (C, H, W).
        embedding_size: the number of values of an example.
    """

    def __init__(self, input_shape: Sequence[int] = (128,), embedding_size: int = 128):
        super().__init__()
        columns = math.prod(input_shape)
        if embedding_size != columns:
            raise ValueError(
                f"embedding_size={embedding_size} must be {columns} for backbone=none, which leaves the {columns} "
                "numbers of an example as they are"
            )

    def forward(self, examples: Tensor) -> Tensor:
        """Return embeddings: (N, *input_shape) -> (N, embedding_size)."""
        return examples.flatten(1)
