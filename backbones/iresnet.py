"""IResNet, the residual network of face recognition (Duta et al., ICPR 2020), as used by ArcFace.

It is designed for 112x112 pixels. Submodules have the names of the published checkpoints.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import image_shape
from .recompute import run_blocks

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}
WIDTHS = (64, 128, 256, 512)
BN_EPS = 1e-5


class IResNet(nn.Module):
    """Improved residual blocks, then batch norm, dropout, one linear layer and batch norm without scale.

    Args:
        input_shape: (C, H, W); H and W must be multiples of 16.
        embedding_size: dimension of the embeddings.
        depth: number of layers: 18, 34, 50, 100 or 200.
        dropout: probability of dropout before the linear layer.
        gradient_checkpointing: compute the blocks again in the backward pass, which saves memory and takes time.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 112, 112),
        embedding_size: int = 512,
        depth: int = 50,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        channels, height, width = image_shape("iresnet", input_shape, multiple=16)
        if depth not in BLOCKS:
            raise ValueError(f"backbone.depth={depth} must be one of {sorted(BLOCKS)} for iresnet")
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=BN_EPS)
        self.prelu = nn.PReLU(64)
        widths = (64, *WIDTHS)
        for i, count in enumerate(BLOCKS[depth]):
            blocks = [Block(widths[i], widths[i + 1], stride=2)]
            blocks += [Block(widths[i + 1], widths[i + 1]) for _ in range(count - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.bn2 = nn.BatchNorm2d(512, eps=BN_EPS)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512 * (height // 16) * (width // 16), embedding_size)
        self.features = nn.BatchNorm1d(embedding_size, eps=BN_EPS)
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings: (N, C, H, W) -> (N, embedding_size)."""
        x = self.prelu(self.bn1(self.conv1(images)))
        for i in range(1, 5):
            x = run_blocks(self.get_submodule(f"layer{i}").children(), x, self.gradient_checkpointing)
        x = self.dropout(self.bn2(x).flatten(1))
        with torch.autocast(x.device.type, enabled=False):  # float32, as published, for a sum of 25,088 products
            features: Tensor = self.features(self.fc(x.float()))
        return features


class Block(nn.Module):
    """Residual block: batch norm, convolution, batch norm, PReLU, convolution, batch norm."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before, eps=BN_EPS)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after, eps=BN_EPS)
        self.prelu = nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(after, eps=BN_EPS)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after, eps=BN_EPS)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + self.downsample(x)
