"""Augmentation of whole batches, each example by draws keyed to it alone."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .keyed import uniforms


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

    def __call__(self, images: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """(n, C, H, W) and keys (n,) -> (n, C, H, W)"""
        draws = torch.from_numpy(2 * uniforms("affine", keys[:, None], np.arange(6))[...] - 1).to(images.dtype)
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


def no_augmentation(examples: Tensor, keys: NDArray[np.uint64]) -> Tensor:
    return examples
