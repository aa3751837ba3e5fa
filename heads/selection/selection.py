"""The classes of one training step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..group.sharding import positions


@dataclass(frozen=True)
class Selection:
    """The classes of this process's shard that take part in a step.

    Args:
        ids: int64 (K,) rows of the shard, sorted, without duplicates, with every positive of the global batch that the
            shard owns. None selects all rows.
        log_q: (K,) log of the probability with which each row was drawn given the batch. It is subtracted from the
            row's logits (sampled-softmax correction). None for no correction.
    """

    ids: Tensor | None = None
    log_q: Tensor | None = None

    def find(self, local: Tensor) -> Tensor:
        """Return the positions of rows of the shard among the selected ones; -1 for others."""
        return local if self.ids is None else positions(self.ids, local)

    def positions(self, local_N: Tensor) -> Tensor:
        """Return the position of each sample's class among the selected rows.

        Args:
            local_N: (N,) rows of the shard; -1 if another process owns the class.

        Returns:
            (N,) int64; -1 if another process owns the class.
        """
        position_N = self.find(local_N)
        if self.ids is not None:
            assert torch.equal(position_N >= 0, local_N >= 0), "a selection must hold every positive of its shard"
        return position_N
