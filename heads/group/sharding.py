"""Sharding of classes over processes: contiguous chunks of ceil(C / W), as in DTensor's `Shard(0)`."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """The classes `start` to `stop` (exclusive) that process `rank` of `world_size` owns.

    Raises:
        ValueError: there is no class, or there are so many processes that one of them gets no class.
    """

    num_classes: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes} must be at least 1")
        if (self.world_size - 1) * self.chunk >= self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes} on {self.world_size} processes leaves a process without a class; "
                f"the largest number of processes that works is {largest_world_size(self.num_classes, self.world_size)}"
            )

    @cached_property
    def chunk(self) -> int:
        """Classes of each process but the last ones."""
        return -(-self.num_classes // self.world_size)

    @property
    def start(self) -> int:
        return self.rank * self.chunk

    @property
    def stop(self) -> int:
        return min(self.start + self.chunk, self.num_classes)

    @property
    def size(self) -> int:
        return self.stop - self.start

    def local(self, labels: Tensor) -> Tensor:
        """Return the rows of this shard (N,) for global class ids (N,); -1 if another process owns the class."""
        return torch.where((labels >= self.start) & (labels < self.stop), labels - self.start, -1)


def positions(ids: Tensor, wanted: Tensor) -> Tensor:
    """Return the positions of `wanted` among sorted ids, -1 for missing ones."""
    if not len(ids):
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(ids, wanted).clamp_(max=len(ids) - 1)
    return torch.where(ids[place] == wanted, place, -1)


def largest_world_size(num_classes: int, at_most: int) -> int:
    """Return the largest number of processes up to `at_most` with which each process has a class."""
    return next(w for w in range(at_most, 0, -1) if (w - 1) * -(-num_classes // w) < num_classes)
