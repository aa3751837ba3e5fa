"""A short training on `data=sphere`, for benchmarks that need trained centers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbones.mlp import MLP
from data.sets.sphere import sphere
from data.streams import InstanceStream
from heads import CenterHead

from .baselines import SGD


@dataclass
class SphereTraining:
    """Training of an MLP and a head by SGD with momentum and a learning rate that decays linearly to zero.

    Args:
        head: the head; its embedding size is also the size of the input vectors.
        batch: samples per step.
        lr: initial learning rate.
        num_steps: steps of the decay.
    """

    head: CenterHead
    batch: int
    lr: float
    num_steps: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        size, device = self.head.embedding_size, self.head.centers.like.device
        self.stream = InstanceStream(sphere(self.head.centers.shard.num_classes, size=size), self.batch)
        self.backbone = MLP((size,), size, [size]).to(device)
        self.rows = self.head.optimizer(**{**SGD, "lr": self.lr})
        self.optimizer = torch.optim.SGD(self.backbone.parameters(), **{**SGD, "lr": self.lr})

    def batches(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (number, images, labels), with one batch after the last step, so that callers see the trained state."""
        device = self.head.centers.like.device
        for number in range(self.num_steps + 1):
            images, labels, _ = self.stream.batch(number)
            yield number, images.to(device), labels.to(device)

    def step(self, number: int, images: Tensor, labels: Tensor) -> None:
        for optimizer in (self.optimizer, self.rows):
            optimizer.param_groups[0]["lr"] = self.lr * (1 - number / (self.num_steps + 1))
        self.head(self.backbone(images), labels).backward()
        nn.utils.clip_grad_norm_(self.backbone.parameters(), 5.0)
        for optimizer in (self.optimizer, self.rows):
            optimizer.step()
            optimizer.zero_grad()
