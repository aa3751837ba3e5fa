"""A tiny convnet for 32x32 images, fast enough to train in a minute on two CPU cores."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import image_shape


class Tiny(nn.Module):
    """Four 3x3 convolutions, each halving the image, and one linear layer."""

    def __init__(self, input_shape: Sequence[int] = (1, 32, 32), embedding_size: int = 128):
        super().__init__()
        channels, height, width = image_shape("tiny", input_shape, multiple=16)
        widths = (channels, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.PReLU(after),
            ]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1] * (height // 16) * (width // 16), embedding_size, bias=False)
        self.features = nn.BatchNorm1d(embedding_size)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, 32, 32) -> (N, embedding_size)"""
        x = self.layers(images.contiguous(memory_format=torch.channels_last))
        features: Tensor = self.features(self.fc(x.flatten(1)))
        return features
