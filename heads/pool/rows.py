"""The rows of a pool as an objective reads them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..objectives.rows import DenseRows


class PoolRows:
    """Slots 0 to `count` of one row of a queue, some of them replaced; see `heads.objectives.rows.Rows`.

    Args:
        queue: (capacity, D) features.
        count: number of slots.
        slots: sorted slots that are replaced.
        features: (len(slots), D) their features.
    """

    def __init__(self, queue: Tensor, count: int, slots: NDArray[np.int64], features: Tensor):
        self.queue, self.count, self.slots, self.features = queue, count, slots, features
        self.replaced = torch.from_numpy(slots).to(queue.device)

    def __len__(self) -> int:
        return self.count

    def gather(self, positions: Tensor) -> Tensor:
        rows = self.queue[positions].float()
        if len(self.slots):
            place = torch.searchsorted(self.replaced, positions).clamp(max=len(self.slots) - 1)
            rows = torch.where((self.replaced[place] == positions)[:, None], self.features[place], rows)
        return rows

    def slice(self, a: int, b: int) -> Tensor:
        rows = self.queue[a:b].float()
        start, stop = np.searchsorted(self.slots, [a, b])
        if start < stop:
            rows = rows.index_copy(0, self.replaced[start:stop] - a, self.features[start:stop])
        return rows

    def subset(self, positions: Tensor) -> DenseRows:
        return DenseRows(self.gather(positions))

    def release(self) -> None:
        """Do nothing: the rows hold no memory of a workspace."""

    @property
    def changed(self) -> bool:
        """False: the gradient is computed with the loss, before the pool changes."""
        return False
