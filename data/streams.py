"""Batch streams: batch number -> batch, computed from the number alone.

A stream has no position and no generator, so resuming means starting at another number, workers need no
state, and every process knows its part of every batch. `BatchLoader` walks the numbers, with workers if
wanted, and remembers how many it handed out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .keyed import hash64, permute
from .records import DataSet, RecordSet

Batch = dict[str, tuple[Tensor, Tensor]]


class InstanceStream:
    """Every record once an epoch, in an order of its own each epoch.

    Args:
        data: the set; its training records are streamed.
        batch_size: records of a batch over all processes. What an epoch leaves over waits for another.
        seed: of order and augmentation.
        rank, world_size: this process takes its contiguous part of every batch.
    """

    def __init__(self, data: DataSet, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1):
        if not world_size <= batch_size <= len(data.train):
            raise ValueError(
                f"batch_size={batch_size}: must lie between the number of processes, {world_size}, "
                f"and the number of training records, {len(data.train)}"
            )
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.batches_per_epoch = len(data.train) // batch_size

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """(examples (n, *shape), labels (n,) int64) of this process in batch `number`, counted from 0."""
        epoch, place = divmod(number, self.batches_per_epoch)
        positions = place * self.batch_size + np.arange(self.batch_size)[self.part]
        indices = permute(positions, len(self.data.train), self.seed, epoch)
        examples = self.data.prepare(self.data.train.source.read(indices))
        examples = self.data.augment(examples, hash64("augmentation", self.seed, epoch, indices))
        return examples, torch.from_numpy(np.asarray(self.data.train.labels[indices], dtype=np.int64))


class _Batches(Dataset[Batch]):
    def __init__(self, streams: Mapping[str, InstanceStream]):
        self.streams = streams

    def __getitem__(self, number: int) -> Batch:
        return {name: stream.batch(number) for name, stream in self.streams.items()}


class BatchLoader:
    """Batches 0 to `num_batches` of some streams, resumable at any of them.

    Its state is the number of samples that training consumed, not what workers fetched ahead.
    """

    def __init__(self, streams: Mapping[str, InstanceStream], num_batches: int, batch_size: int, num_workers: int = 0):
        self.streams, self.num_batches, self.batch_size = streams, num_batches, batch_size
        self.num_workers = num_workers
        self.handed_out = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        numbers = range(self.handed_out, self.num_batches)
        loader = DataLoader(
            _Batches(self.streams),
            batch_size=None,
            sampler=numbers,  # type: ignore[arg-type]
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Its iterator would otherwise draw from the global generator, and resuming would change it.
            generator=torch.Generator(),
        )
        for batch in loader:
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.handed_out * self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        batches, rest = divmod(state["samples"], self.batch_size)
        if rest:
            raise ValueError(
                f"batch_size={self.batch_size}: the checkpoint was written after {state['samples']} samples, which is "
                "no whole number of such batches; resume with the batch_size it was trained with"
            )
        self.handed_out = batches


class HeldOut(Dataset[tuple[Tensor, Tensor]]):
    """All records of a set in order, in blocks, prepared but not augmented."""

    def __init__(self, data: DataSet, block: int = 512):
        self.data, self.block = data, block

    @property
    def records(self) -> RecordSet:
        return self.data.heldout

    def __len__(self) -> int:
        return -(-len(self.records) // self.block)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        indices = np.arange(number * self.block, min((number + 1) * self.block, len(self.records)))
        if not len(indices):
            raise IndexError(number)
        examples = self.data.prepare(self.records.source.read(indices))
        return examples, torch.from_numpy(np.asarray(self.records.labels[indices], dtype=np.int64))
