"""What a head will need, by formula: memory, bytes between processes and multiply-adds of one training step.

Collectives are counted as rings carry them out: of W processes each sends (W - 1) / W of what is gathered, and twice
that of what is summed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .dtypes import named
from .row_state import RowState


@dataclass(frozen=True)
class Case:
    """
    Args:
        num_classes: C, over all processes.
        embedding_size: D.
        batch: images of a step, over all processes.
        world_size: processes.
    """

    num_classes: int
    embedding_size: int
    batch: int
    world_size: int = 1

    @property
    def shard(self) -> int:
        """Classes of the process that has most."""
        return -(-self.num_classes // self.world_size)

    def sent(self, *, gathered: float = 0, summed: float = 0) -> float:
        """Bytes that each process sends for collectives over so many bytes, of all processes or of each."""
        return (gathered + 2 * summed) * (self.world_size - 1) / self.world_size


@dataclass(frozen=True)
class Cost:
    """Of one process.

    Args:
        table_bytes: rows and row state, or the pool; they lie where the store is.
        work_bytes: beside them while a step goes on, where the head computes.
        index_bytes: in host memory.
        sent_bytes: to other processes in a step.
        multiply_adds: of matrix products in a step.
        moved_bytes: of the table, read or written in a step.
    """

    table_bytes: float
    work_bytes: float
    sent_bytes: float
    multiply_adds: float
    moved_bytes: float
    index_bytes: float = 0.0


def state_bytes(row_state: Mapping[str, RowState]) -> int:
    """Of what a row optimizer remembers of one row."""
    return sum(each.width * (4 if each.dtype is None else each.dtype.itemsize) for each in row_state.values())


def number_bytes(dtype: torch.dtype | str) -> int:
    """Return the bytes of one number."""
    return named("dtype", dtype).itemsize
