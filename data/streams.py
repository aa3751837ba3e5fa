"""Batch streams: batch number -> batch, computed from the number alone.

A stream has no position and no generator, so resuming means starting at another number, workers need no
state, and every process knows its part of every batch. `BatchLoader` walks the numbers, with workers if
wanted, and remembers how many it handed out.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .counter_rng import hash64, permute, uniforms
from .grouping import group
from .loading import loaded
from .records import DataSet, Indices, Source

Part = tuple[Tensor, Tensor, Tensor]  # examples as stored, labels, draws of their augmentation
Batch = dict[str, Part]
BLOCK = 2**13  # places of an epoch that are shuffled together
IDENTITY = 1  # keeps the order of identities apart from that of records


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

    def batch(self, number: int) -> Part:
        """(examples (n, ...), labels (n,) int64, draws (n, ...)) of this process in batch `number`, counted from 0."""
        epoch, place = divmod(number, self.batches_per_epoch)
        start = place * self.batch_size
        indices = shuffled(start + self.part.start, start + self.part.stop, len(self.data.train), self.seed, epoch)
        draws = self.data.augment.draws(hash64("augmentation", self.seed, epoch, indices))
        labels = torch.from_numpy(np.asarray(self.data.train.labels[indices], dtype=np.int64))
        return self.data.train.source.read(indices), labels, draws


class IdentityStream:
    """Two different records of every class once an epoch, in an order and a choice of their own each epoch.

    Args:
        data: the set; its training records are streamed. A class of one record gives it twice, each time with an
            augmentation of its own.
        batch_size: records of a batch over all processes, two for each class. What an epoch leaves over
            waits for another.
        seed: of order, choice and augmentation.
        rank, world_size: this process takes its contiguous part of every batch.
    """

    def __init__(self, data: DataSet, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1):
        self.by_class = data.train.by_class or group(data.train.labels, data.train.num_classes)
        present = self.by_class.present
        self.num_classes = data.train.num_classes if present is None else len(present)
        self.pairs = batch_size // 2
        if batch_size % 2 or not world_size <= self.pairs <= self.num_classes:
            raise ValueError(
                f"batch_size={batch_size} of the identity stream: must be even, with a class for each of the "
                f"{world_size} processes, and at most twice the {self.num_classes} training classes"
            )
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.part = slice(rank * self.pairs // world_size, (rank + 1) * self.pairs // world_size)
        self.batches_per_epoch = self.num_classes // self.pairs

    def batch(self, number: int) -> Part:
        """(examples (2n, ...), labels (2n,) int64, draws (2n, ...)): example n + i is another of the class of i."""
        epoch, place = divmod(number, self.batches_per_epoch)
        start = place * self.pairs
        key = (self.seed, epoch, IDENTITY)
        chosen = shuffled(start + self.part.start, start + self.part.stop, self.num_classes, *key)
        classes = chosen if self.by_class.present is None else self.by_class.present[chosen]
        starts = np.asarray(self.by_class.starts[classes], dtype=np.int64)
        counts = np.asarray(self.by_class.starts[classes + 1], dtype=np.int64) - starts
        u, v = (uniforms("identity", self.seed, epoch, which, chosen) for which in (0, 1))
        first = (u * counts).astype(np.int64)
        second = (first + 1 + (v * (counts - 1)).astype(np.int64)) % counts
        indices = np.asarray(self.by_class.order[np.concatenate([starts + first, starts + second])], dtype=np.int64)
        which = np.repeat([0, 1], len(chosen))
        draws = self.data.augment.draws(hash64("identity augmentation", self.seed, epoch, which, indices))
        return self.data.train.source.read(indices), torch.from_numpy(np.tile(classes, 2)), draws


def shuffled(start: int, stop: int, size: int, *key: int) -> Indices:
    """A stretch of a keyed permutation of 0 .. size - 1."""
    blocks = [_block(number, size, *key) for number in range(start // BLOCK, -(-stop // BLOCK))]
    return np.concatenate(blocks)[start % BLOCK :][: stop - start]


@lru_cache(maxsize=8)
def _block(number: int, size: int, *key: int) -> Indices:
    """Many at once: a few take numpy nearly as long."""
    return permute(np.arange(number * BLOCK, min((number + 1) * BLOCK, size)), size, *key)


Stream = InstanceStream | IdentityStream
STREAMS: dict[str, type[InstanceStream] | type[IdentityStream]] = {
    "instance": InstanceStream,
    "identity": IdentityStream,
}


class _Batches(Dataset[Part | ValueError]):
    def __init__(self, stream: Stream):
        self.stream = stream

    def __getitem__(self, number: int) -> Part | ValueError:
        """What a worker raises comes back wrapped in its traceback; what it returns does not."""
        try:
            return self.stream.batch(number)
        except ValueError as error:
            return error


class BatchLoader:
    """Batches 0 to `num_batches` of some streams, resumable at any of them.

    Its state is the number of samples that training consumed, not what workers fetched ahead. Each stream has
    `num_workers` processes of its own, and starts its epochs over when they end.

    Args:
        batch_size: samples of a batch, of all streams together.
        ahead: batches that are ready before the one handed out is trained on.

    Attributes:
        failure: why a batch after those that are ready cannot be had, or None. Whoever trains can end in good order
            before iteration raises it.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        num_batches: int,
        batch_size: int,
        num_workers: int = 0,
        ahead: int = 0,
    ):
        self.streams, self.num_batches, self.batch_size = streams, num_batches, batch_size
        self.num_workers, self.ahead = num_workers, ahead
        self.handed_out = 0
        self.failure: str | None = None

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        """Raises ValueError for a batch that cannot be had, once all before it are handed out."""
        self.failure = None
        coming, ready = self._batches(), deque[Batch]()
        while True:
            while self.failure is None and len(ready) <= self.ahead:
                try:
                    ready.append(next(coming))
                except StopIteration:
                    break
                except ValueError as error:
                    self.failure = str(error)
            if not ready:
                break
            self.handed_out += 1
            yield ready.popleft()
        if self.failure is not None:
            raise ValueError(self.failure)

    def _batches(self) -> Iterator[Batch]:
        numbers = range(self.handed_out, self.num_batches)
        pin = torch.cuda.is_available()
        loaders = [loaded(_Batches(stream), numbers, self.num_workers, pin) for stream in self.streams.values()]
        for parts in zip(*loaders, strict=True):
            for part in parts:
                if isinstance(part, ValueError):
                    raise part
            yield dict(zip(self.streams, map(tuple, parts), strict=True))

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


class InOrder(Dataset[Tensor | ValueError]):
    """Examples in a given order, in blocks, as stored."""

    def __init__(self, source: Source, indices: Indices, block: int):
        self.source, self.indices, self.block = source, indices, block

    def __len__(self) -> int:
        return -(-len(self.indices) // self.block)

    def __getitem__(self, number: int) -> Tensor | ValueError:
        indices = self.indices[number * self.block : (number + 1) * self.block]
        if not len(indices):
            raise IndexError(number)
        try:
            return self.source.read(indices)
        except ValueError as error:
            return error
