"""Augmentation of whole batches, each example by draws keyed to it alone.

An augmentation draws where batches are read, and is applied where training runs, on its device.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .counter_rng import U64, uniforms


class RandomAffine:
    """Rotation, scale, shear and shift about the centre, bilinear, background outside.

    Args:
        degrees: largest rotation either way.
        scale: largest relative change of each side either way.
        shear: largest shear either way, as a share of the side.
        shift: largest shift either way, as a share of the side.
        background: value outside the image, as prepared.
    """

    def __init__(
        self,
        degrees: float = 10.0,
        scale: float = 0.15,
        shear: float = 0.15,
        shift: float = 0.08,
        background: float = -1.0,
    ):
        self.degrees, self.scale, self.shear, self.shift, self.background = degrees, scale, shear, shift, background

    def draws(self, keys: U64) -> Tensor:
        """One key an example (n,) -> (n, 6), uniform in (-1, 1)."""
        return torch.from_numpy((2 * uniforms("affine", keys[:, None], np.arange(6)) - 1).astype(np.float32))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C, H, W)"""
        angle = draws[:, 0] * math.radians(self.degrees)
        scale_x, scale_y = 1 + self.scale * draws[:, 1], 1 + self.scale * draws[:, 2]
        shear = self.shear * draws[:, 3]
        cos, sin = torch.cos(angle), torch.sin(angle)
        theta = torch.stack(
            [
                torch.stack([cos * scale_x, (shear * cos - sin) * scale_y, 2 * self.shift * draws[:, 4]], dim=1),
                torch.stack([sin * scale_x, (shear * sin + cos) * scale_y, 2 * self.shift * draws[:, 5]], dim=1),
            ],
            dim=1,
        )
        grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        # Sampled against a background of zero, so that what lies outside reads as background.
        moved = torch.nn.functional.grid_sample(images - self.background, grid, align_corners=False)
        return moved + self.background


class Unchanged:
    """No augmentation."""

    def draws(self, keys: U64) -> Tensor:
        return torch.empty(len(keys), 0)

    def __call__(self, examples: Tensor, draws: Tensor) -> Tensor:
        return examples


@dataclass(frozen=True)
class Faces:
    """What the field does to images of faces; each part with strength 0 is left out.

    Values are not clipped: what is added to a bright pixel may leave the range of pixels.

    Args:
        flip: probability of mirroring left and right.
        crop: largest share of the side that is cut off, at random on both sides, before scaling up again.
        brightness: largest value added, as a share of the range from -1 to 1.
        contrast, saturation: largest relative change of the differences to the image's mean, and to its grey.
        grey: probability of losing all colour.
        low_resolution: probability of being scaled to a half or a quarter, and up again.
        erase: probability of losing a rectangle of up to half the side, to 0.
    """

    flip: float = 0.5
    crop: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0
    low_resolution: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1 or (name == "crop" and value == 1):
                raise ValueError(f"data.augment.{name}={value}: must lie in [0, 1{')' if name == 'crop' else ']'}")

    def draws(self, keys: U64) -> Tensor:
        """One key an example (n,) -> (n, 15), uniform in (0, 1)."""
        return torch.from_numpy(uniforms("faces", keys[:, None], np.arange(15)).astype(np.float32))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C, H, W); what was given may be written to."""
        flip, zoom, x, y, bright, contrast, saturation, grey, low, factor, erase, *box = draws.unbind(1)
        if self.crop:
            images = self._cropped(images, zoom, x, y)
        if self.low_resolution:
            images = self._coarsened(images, low, factor)
        if self.saturation or self.grey:
            kept = torch.where(grey < self.grey, 0, 1 + self.saturation * (2 * saturation - 1))
            images = _from(images, _grey(images), kept)
        if self.contrast:
            images = _from(images, images.mean((1, 2, 3), keepdim=True), 1 + self.contrast * (2 * contrast - 1))
        if self.brightness:
            images = images + (2 * self.brightness * (2 * bright - 1))[:, None, None, None]
        if self.flip:
            self._mirror(images, flip < self.flip)
        if self.erase:
            images = images.masked_fill(self._boxes(images, erase, *box), 0)
        return images

    def _mirror(self, images: Tensor, chosen: Tensor) -> None:
        if images.device.type != "cpu":
            images.copy_(torch.where(chosen[:, None, None, None], images.flip(3), images))
            return
        for place in chosen.nonzero()[:, 0].tolist():  # an image stays in the cache, a batch does not
            images[place] = images[place].flip(2)

    def _cropped(self, images: Tensor, zoom: Tensor, x: Tensor, y: Tensor) -> Tensor:
        scale = 1 - self.crop * zoom
        theta = images.new_zeros(len(images), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, 0, 2], theta[:, 1, 2] = (1 - scale) * (2 * x - 1), (1 - scale) * (2 * y - 1)
        grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _coarsened(self, images: Tensor, low: Tensor, factor: Tensor) -> Tensor:
        images = images.clone()
        for by, chosen in ((2, factor < 0.5), (4, factor >= 0.5)):
            chosen = chosen & (low < self.low_resolution)
            small = torch.nn.functional.avg_pool2d(images[chosen], by, ceil_mode=True)
            images[chosen] = torch.nn.functional.interpolate(
                small, size=images.shape[2:], mode="bilinear", align_corners=False
            )
        return images

    def _boxes(self, images: Tensor, erase: Tensor, *box: Tensor) -> Tensor:
        """True in the rectangle of each image that loses one, (n, 1, H, W)."""
        inside = (erase < self.erase)[:, None, None, None]
        for axis, (place, length) in enumerate((box[:2], box[2:])):
            side = images.shape[2 + axis]
            begin, extent = (each[:, None] * side for each in (place * (1 - length / 2), length / 2))
            along = torch.arange(side, device=images.device) + 0.5
            within = (along >= begin) & (along < begin + extent)
            inside = inside & (within[:, None, :, None] if axis == 0 else within[:, None, None, :])
        return inside


def _grey(images: Tensor) -> Tensor:
    """(n, 1, H, W), by the weights of ITU-R BT.601."""
    if images.shape[1] == 1:
        return images
    return torch.einsum("nchw,c->nhw", images, images.new_tensor([0.299, 0.587, 0.114]))[:, None]


def _from(images: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    """Differences to the centre, times a factor for each image."""
    return centre + (images - centre) * factor[:, None, None, None]
