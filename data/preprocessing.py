"""How encoded images become what a backbone gets. It goes with a model wherever that goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .formats.decode import FITS, MODES, Decoder


@dataclass(frozen=True)
class Normalize:
    """uint8 (n, H, W, C) -> float32 (n, C, H, W): (pixel / 255 - mean) / std, a number for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        if len({*self.mean}) == len({*self.std}) == 1:
            return pixels.sub_(255 * self.mean[0]).div_(255 * self.std[0])
        mean, std = (pixels.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        return pixels.sub_(255 * mean).div_(255 * std)


@dataclass(frozen=True)
class Preprocessing:
    """
    Args:
        height, width: in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: how images of another size are brought to this one: "crop" or "stretch".
        mean, std: of pixels from 0 to 1, a number for each channel.
        crop: share of each side, about the centre, that is kept of every image before it is brought to this size.
    """

    height: int
    width: int
    channels: int
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Preprocessing":
        """From what `dataclasses.asdict` made of one."""
        return cls(**{**told, "mean": tuple(told["mean"]), "std": tuple(told["std"])})

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what a backbone gets."""
        return self.channels, self.height, self.width

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self.height, self.width, self.channels, self.fit, self.crop)

    @cached_property
    def normalize(self) -> Normalize:
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
    """From options, as users give them.

    Args:
        size: side in pixels, or [height, width].
        mean, std: one number, or one a channel.
        crop: share of each side that is kept, about the centre; 1 for all.
        option: what their names begin with, for errors.
    """
    sides = [size, size] if isinstance(size, int | float) else [] if isinstance(size, str) else list(size)
    if len(sides) != 2 or any(side != int(side) or side < 1 for side in sides):
        raise ValueError(f"{option}size={size}: a whole number of pixels, at least 1, or [height, width] is needed")
    if channels not in MODES:
        raise ValueError(f"{option}channels={channels}: must be 1 (grey) or 3 (RGB)")
    if fit not in FITS:
        raise ValueError(f"{option}fit={fit}: must be one of {', '.join(FITS)}")
    if isinstance(crop, bool) or not isinstance(crop, int | float) or not 0 < crop <= 1:
        raise ValueError(f"{option}crop={crop}: must lie in (0, 1]; 0.56 keeps the middle 56 % of each side, 1 all")
    numbers = []
    for name, value in (("mean", mean), ("std", std)):
        values = (float(value),) * channels if isinstance(value, int | float) else tuple(map(float, value))
        if len(values) != channels or (name == "std" and min(values) <= 0):
            raise ValueError(f"{option}{name}={value}: one number, or one for each of {channels} channels, is needed")
        numbers.append(values)
    height, width = map(int, sides)
    return Preprocessing(height, width, channels, fit, numbers[0], numbers[1], float(crop))
