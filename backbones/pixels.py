"""Input of published networks: the pixels of a data set, shifted and scaled as those that a network was trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """Map images of this project, in [-1, 1], to the means and standard deviations of another training.

    Args:
        channels: channels of the data: 1 or those of the network.
        mean: mean of each channel of the network, of pixels in [0, 1].
        std: standard deviation of each channel.

    Raises:
        ValueError: the data have channels that the network has not.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if channels not in (1, len(mean)):
            raise ValueError(f"the network takes images of {len(mean)} channels, and the data have {channels}")
        # They belong to the network, not to the training, so that no checkpoint keeps them.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images as the network expects them: (N, 1 or C, H, W) -> (N, C, H, W)."""
        return (images * 0.5 + 0.5 - self.mean) / self.std
