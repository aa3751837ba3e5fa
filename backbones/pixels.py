"""Input of published networks: the pixels of a data set, shifted and scaled as those that a network was trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """Undo the normalization of the data, and apply that of another training.

    Args:
        channels: channels of the data: 1 or those of the network.
        mean: mean of each channel of the network, of pixels in [0, 1].
        std: standard deviation of each channel.
        data_mean: mean that was subtracted from the data, one number or one for each channel of the data.
        data_std: standard deviation that the data were divided by.

    Raises:
        ValueError: the data have channels that the network has not.
    """

    mean: Tensor
    std: Tensor
    data_mean: Tensor
    data_std: Tensor

    def __init__(
        self,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        data_mean: Sequence[float],
        data_std: Sequence[float],
    ):
        super().__init__()
        if channels not in (1, len(mean)):
            raise ValueError(f"the network takes images of {len(mean)} channels, and the data have {channels}")
        # They belong to the network, not to the training, so that no checkpoint keeps them.
        numbers = {"mean": mean, "std": std, "data_mean": data_mean, "data_std": data_std}
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images as the network expects them: (N, 1 or C, H, W) -> (N, C, H, W)."""
        return (images * self.data_std + self.data_mean - self.mean) / self.std
