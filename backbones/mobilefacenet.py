"""MobileFaceNet (Chen et al., CCBR 2018): a million parameters for phones, designed for 112x112 pixels."""

from collections.abc import Sequence

from torch import Tensor, nn

from . import image_shape

# expansion, output channels, repeats, first stride
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class MobileFaceNet(nn.Module):
    """Inverted residual bottlenecks, then a global depthwise convolution instead of average pooling.

    Args:
        input_shape: (C, H, W); H and W must be multiples of 16.
        embedding_size: dimension of the embeddings.
    """

    def __init__(self, input_shape: Sequence[int] = (3, 112, 112), embedding_size: int = 512):
        super().__init__()
        channels, height, width = image_shape("mobilefacenet", input_shape, multiple=16)
        blocks: list[nn.Module] = [
            conv_block(channels, 64, 3, stride=2, padding=1),
            conv_block(64, 64, 3, padding=1, groups=64),
        ]
        before = 64
        for expansion, after, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(before, after, expansion, stride if i == 0 else 1))
                before = after
        self.blocks = nn.Sequential(*blocks, conv_block(before, 512, 1))
        self.global_depthwise = nn.Sequential(
            nn.Conv2d(512, 512, (height // 16, width // 16), groups=512, bias=False), nn.BatchNorm2d(512)
        )
        self.fc = nn.Linear(512, embedding_size, bias=False)
        self.features = nn.BatchNorm1d(embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings: (N, C, H, W) -> (N, embedding_size)."""
        x = self.global_depthwise(self.blocks(images))
        features: Tensor = self.features(self.fc(x.flatten(1)))
        return features


def conv_block(before: int, after: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Module:
    """Return convolution, batch norm and PReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.PReLU(after),
    )


class InvertedResidual(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise 3x3, linear 1x1; added to its input if the shapes are equal."""

    def __init__(self, before: int, after: int, expansion: int, stride: int):
        super().__init__()
        inner = before * expansion
        self.residual = stride == 1 and before == after
        self.layers = nn.Sequential(
            conv_block(before, inner, 1),
            conv_block(inner, inner, 3, stride=stride, padding=1, groups=inner),
            nn.Conv2d(inner, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y
