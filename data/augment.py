"""Augmentation of batches, with random numbers keyed by the example.

An augmentation draws its random numbers where batches are read, and is applied on the training device.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .counter_rng import U64, uniforms


class RandomAffine:
    """Random rotation, scale, shear and shift about the centre, with bilinear interpolation.

    Args:
        degrees: largest rotation in either direction.
        scale: largest relative change of each side, up or down.
        shear: largest shear in either direction, as a share of the side.
        shift: largest shift in either direction, as a share of the side.
        background: value outside the image, in the range of prepared images.
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
        """Return uniform numbers in (-1, 1): keys (n,) -> (n, 6)."""
        return torch.from_numpy((2 * uniforms("affine", keys[:, None], np.arange(6)) - 1).astype(np.float32))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the transformed images: (n, C, H, W) -> (n, C, H, W)."""
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
        # grid_sample fills with zero, so the background is made zero before and restored after.
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
    """Usual augmentation of face images. A part with strength 0 is skipped.

    Values are not clipped, so brightness may move pixels out of their range.

    Args:
        flip: probability of a horizontal flip.
        crop: largest share of the side that is cropped, at a random place, before scaling up again.
        brightness: largest value added, as a share of the range from -1 to 1.
        contrast, saturation: largest relative change of the differences from the image's mean, and from its grey
            version.
        grey: probability of conversion to grey.
        low_resolution: probability of scaling to a half or a quarter, and up again.
        erase: probability of erasing a rectangle of up to half the side to 0.
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
                raise ValueError(f"data.augment.{name}={value} must be in [0, 1{')' if name == 'crop' else ']'}")

    def draws(self, keys: U64) -> Tensor:
        """Return uniform numbers in (0, 1): keys (n,) -> (n, 15)."""
        return torch.from_numpy(uniforms("faces", keys[:, None], np.arange(15)).astype(np.float32))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the augmented images: (n, C, H, W) -> (n, C, H, W). The input may be overwritten."""
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
        for index in chosen.nonzero()[:, 0].tolist():  # a single image fits into the CPU cache, a batch does not
            images[index] = images[index].flip(2)

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
        """Return a mask (n, 1, H, W) that is True in the erased rectangle of each chosen image."""
        inside = (erase < self.erase)[:, None, None, None]
        for axis, (position, length) in enumerate((box[:2], box[2:])):
            side = images.shape[2 + axis]
            begin, extent = (share[:, None] * side for share in (position * (1 - length / 2), length / 2))
            along = torch.arange(side, device=images.device) + 0.5
            within = (along >= begin) & (along < begin + extent)
            inside = inside & (within[:, None, :, None] if axis == 0 else within[:, None, None, :])
        return inside


def _grey(images: Tensor) -> Tensor:
    """Return grey images (n, 1, H, W), with the weights of ITU-R BT.601."""
    if images.shape[1] == 1:
        return images
    return torch.einsum("nchw,c->nhw", images, images.new_tensor([0.299, 0.587, 0.114]))[:, None]


def _from(images: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    """Scale the differences from the centre by a factor for each image."""
    return centre + (images - centre) * factor[:, None, None, None]
