"""Formulas for the needs of a head's training step: memory, bytes between processes, and multiply-adds.

Collectives are counted as ring algorithms: each of W processes sends (W - 1) / W of the gathered bytes, and twice
that share of the summed bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

import torch

from .dtypes import named
from .row_state import RowState


class TooManyClassesError(ValueError):
    """A head cannot have as many classes, whatever the memory."""


@dataclass(frozen=True)
class Case:
    """The size of a training step.

    Args:
        num_classes: C, over all processes.
        embedding_size: D.
        batch: images of a step, over all processes.
        world_size: number of processes.
        num_records: training records, over all processes; 0 if unknown.
    """

    num_classes: int
    embedding_size: int
    batch: int
    world_size: int = 1
    num_records: int = 0

    @property
    def shard(self) -> int:
        """Classes of the largest shard."""
        return -(-self.num_classes // self.world_size)

    def sent(self, *, gathered: float = 0, summed: float = 0) -> float:
        """Return the bytes that each process sends.

        Args:
            gathered: bytes of all processes that are gathered.
            summed: bytes of each process that are summed over processes.
        """
        return (gathered + 2 * summed) * (self.world_size - 1) / self.world_size


@dataclass(frozen=True)
class Cost:
    """Memory, traffic and arithmetic that a training step needs on one process.

    Args:
        table_bytes: rows and row state, or the pool; stored where `store` says.
        work_bytes: additional memory during a step, on the device.
        sent_bytes: bytes sent to other processes in a step.
        multiply_adds: multiply-adds of matrix products in a step.
        moved_bytes: bytes of the table that are read or written in a step.
        index_bytes: host memory of the index.
    """

    table_bytes: float
    work_bytes: float
    sent_bytes: float
    multiply_adds: float
    moved_bytes: float
    index_bytes: float = 0.0


def largest(costs: Iterable[Cost]) -> Cost:
    """Return the largest value of each part, for options that change during training."""
    return Cost(*map(max, zip(*map(astuple, costs), strict=True)))


def state_bytes(row_state: Mapping[str, RowState]) -> int:
    """Return the bytes of optimizer state per row."""
    return sum(state.width * (4 if state.dtype is None else state.dtype.itemsize) for state in row_state.values())


def number_bytes(dtype: torch.dtype | str) -> int:
    """Return the bytes of one number."""
    return named("dtype", dtype).itemsize
