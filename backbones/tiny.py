"""A tiny convnet for images whose sides are multiples of 8 pixels; at 32x32 it trains in a minute on two CPU cores."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import image_shape

STAGES = ((24, 2), (48, 1), (96, 2), (192, 2))  # channels, stride


class Tiny(nn.Module):
    """Four 3x3 convolutions, three of which halve the image, and one linear layer.

    Args:
        input_shape: (C, H, W); H and W must be multiples of 8.
        embedding_size: dimension of the embeddings.
    """

    def __init__(self, input_shape: Sequence[int] = (1, 32, 32), embedding_size: int = 128):
        super().__init__()
        channels, height, width = image_shape("tiny", input_shape, multiple=8)
        layers: list[nn.Module] = []
        for after, stride in STAGES:
            layers += [
                nn.Conv2d(channels, after, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            channels = after
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * (height // 8) * (width // 8), embedding_size, bias=False)
        self.features = nn.BatchNorm1d(embedding_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings: (N, *input_shape) -> (N, embedding_size)."""
        x = self.layers(images.contiguous(memory_format=torch.channels_last))
        features: Tensor = self.features(self.fc(x.flatten(1)))
        return features
