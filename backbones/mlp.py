"""A multilayer perceptron for vectors. Without batch norm, training does not depend on the number of processes."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with layer norm and ReLU between them. Images are flattened.

    Args:
        input_shape: shape of an example, (D,) or (C, H, W).
        embedding_size: dimension of the embeddings.
        hidden: widths of the layers between input and embedding.
    """

    def __init__(self, input_shape: Sequence[int] = (128,), embedding_size: int = 128, hidden: Sequence[int] = (256,)):
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], embedding_size))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return embeddings: (N, *input_shape) -> (N, embedding_size)."""
        embeddings: Tensor = self.layers(vectors.flatten(1))
        return embeddings
