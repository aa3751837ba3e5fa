"""The classes of one training step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..group.sharding import positions


@dataclass(frozen=True)
class Selection:
    """The classes of this process's shard that take part in a step.

    Args:
        ids: int64 (K,) rows of the shard, without duplicates, with every positive of the global batch that the shard
            owns. They are sorted, or two sorted parts. None selects all rows.
        log_q: (K,) log of the probability with which each row was drawn given the batch. It is subtracted from the
            row's logits (sampled-softmax correction). None for no correction.
        block: number of rows of a block, which are adjacent and were drawn together.
        starts: int64, sorted, the first row of each block, on the host. Their rows are the first part of `ids`. None
            for no blocks.

    Examples:
        >>> Selection(torch.tensor([0, 3, 7])).ids.tolist()  # three rows of this process's shard
        [0, 3, 7]
    """

    ids: Tensor | None = None
    log_q: Tensor | None = None
    block: int = 1
    starts: Tensor | None = None

    @property
    def num_in_blocks(self) -> int:
        """Number of ids in the first part, which are the rows of blocks."""
        return 0 if self.starts is None else self.block * len(self.starts)

    def find(self, local: Tensor) -> Tensor:
        """Return the positions of rows of the shard among the selected ones; -1 for others."""
        if self.ids is None:
            return local
        in_second = positions(self.ids[self.num_in_blocks :], local)
        if not self.num_in_blocks:
            return in_second
        in_first = positions(self.ids[: self.num_in_blocks], local)
        return torch.where(in_second >= 0, in_second + self.num_in_blocks, in_first)

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
