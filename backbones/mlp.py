"""A perceptron for vectors. Without batch norm, so that it trains the same on any number of processes."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers, layer norm and ReLU between; images are flattened.

    Args:
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
        """(N, *input_shape) -> (N, embedding_size)"""
        embeddings: Tensor = self.layers(vectors.flatten(1))
        return embeddings
