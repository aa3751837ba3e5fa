"""Preprocessing of encoded images for a backbone. It is saved with the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .formats.decode import FITS, MODES, Decoder


@dataclass(frozen=True)
class Normalize:
    """Normalization by channel: uint8 (n, H, W, C) -> float32 (n, C, H, W), (pixel / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        if len({*self.mean}) == len({*self.std}) == 1:
            return pixels.sub_(255 * self.mean[0]).div_(255 * self.std[0])
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return pixels.sub_(255 * mean).div_(255 * std)


@dataclass(frozen=True)
class Preprocessing:
    """Size, colour and normalization of the images that a backbone gets.

    Args:
        height, width: size in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: how images of another size are brought to this size: "crop" or "stretch".
        mean, std: mean and standard deviation of pixels from 0 to 1, a number for each channel.
        crop: share of each side that is kept first, about the centre of every image.
    """

    height: int
    width: int
    channels: int
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing that `dataclasses.asdict` turned into a dict."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the backbone's input."""
        return self.channels, self.height, self.width

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder of encoded images to this size."""
        return Decoder(self.height, self.width, self.channels, self.fit, self.crop)

    @cached_property
    def normalize(self) -> Normalize:
        """The normalization of decoded images."""
        return Normalize(self.mean, self.std)


def preprocessing_of(
    size: float | Sequence[float],
    channels: int,
    fit: str,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    crop: float = 1.0,
    option: str = "",
) -> Preprocessing:
    """Return the preprocessing that a user's options describe.

    Args:
        size: side in pixels, or [height, width].
        channels: 1 (grey) or 3 (RGB).
        fit: "crop" or "stretch".
        mean, std: one number, or one for each channel.
        crop: share of each side that is kept, about the centre; 1 keeps all.
        option: prefix of the options' names, for error messages.

    Raises:
        ValueError: an option is out of range.
    """
    sides = [size, size] if isinstance(size, int | float) else [] if isinstance(size, str) else list(size)
    if len(sides) != 2 or any(side != int(side) or side < 1 for side in sides):
        raise ValueError(f"{option}size={size} must be a whole number of pixels, at least 1, or [height, width]")
    if channels not in MODES:
        raise ValueError(f"{option}channels={channels} must be 1 (grey) or 3 (RGB)")
    if fit not in FITS:
        raise ValueError(f"{option}fit={fit} must be one of {', '.join(FITS)}")
    if isinstance(crop, bool) or not isinstance(crop, int | float) or not 0 < crop <= 1:
        raise ValueError(f"{option}crop={crop} must be in (0, 1]; 0.56 keeps the middle 56 % of each side, 1 keeps all")
    numbers = []
    for name, value in (("mean", mean), ("std", std)):
        values = (float(value),) * channels if isinstance(value, int | float) else tuple(map(float, value))
        if len(values) != channels or (name == "std" and min(values) <= 0):
            sign = "positive number" if name == "std" else "number"
            raise ValueError(f"{option}{name}={value} must be one {sign}, or one for each of {channels} channels")
        numbers.append(values)
    height, width = map(int, sides)
    return Preprocessing(height, width, channels, fit, numbers[0], numbers[1], float(crop))
