"""ResNet with bottlenecks (He et al., CVPR 2016) and the stride in the 3x3 convolution.

It is designed for 224x224 pixels. Submodules have the names of the published checkpoints; `fc` returns the embedding.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from . import image_shape
from .recompute import run_blocks

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4


class ResNet(nn.Module):
    """Bottlenecks in four stages, average pooling and one linear layer.

    Args:
        input_shape: (C, H, W).
        embedding_size: dimension of the embeddings.
        depth: number of layers: 50, 101 or 152.
        gradient_checkpointing: compute the blocks again in the backward pass, which saves memory and takes time.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 224, 224),
        embedding_size: int = 512,
        depth: int = 50,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        channels, _, _ = image_shape("resnet", input_shape)
        if depth not in BLOCKS:
            raise ValueError(f"backbone.depth={depth} must be one of {sorted(BLOCKS)} for resnet")
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = 64
        for i, count in enumerate(BLOCKS[depth]):
            width = 64 * 2**i
            blocks = []
            for j in range(count):
                blocks.append(Bottleneck(before, width, stride=2 if i and not j else 1))
                before = width * EXPANSION
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings: (N, C, H, W) -> (N, embedding_size)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for i in range(1, 5):
            x = run_blocks(self.get_submodule(f"layer{i}").children(), x, self.gradient_checkpointing)
        embeddings: Tensor = self.fc(self.avgpool(x).flatten(1))
        return embeddings


class Bottleneck(nn.Module):
    """Residual bottleneck: 1x1, 3x3 and 1x1 convolution."""

    def __init__(self, before: int, width: int, stride: int = 1):
        super().__init__()
        after = width * EXPANSION
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.bn3(self.conv3(y)) + self.downsample(x))
        return out
