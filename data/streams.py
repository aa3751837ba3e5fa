"""Batch streams: a batch is computed from its number alone.

A stream has no position and no generator. Resuming means starting at another number, workers need no state, and every
process knows its part of every batch. `BatchLoader` iterates over the numbers, optionally with workers, and counts the
batches that it returned.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .counter_rng import hash64, permute, uniforms
from .grouping import group
from .loading import loaded
from .options import whole
from .records import DataSet, Indices

# Stored examples, labels, random numbers of their augmentation, and weights if there are any; or weights or None, and
# record numbers, for a head that asks for these.
Part = tuple[Any, ...]
Batch = dict[str, Part]
BLOCK = 2**13  # positions of an epoch that are shuffled together
IDENTITY = 1  # distinguishes the order of identities from that of records


class InstanceStream:
    """Stream of records: each appears once per epoch, in a different order each epoch.

    Args:
        data: the set with the training records.
        batch_size: records of a batch over all processes. An epoch drops the last records that do not fill a batch.
        seed: seed of order and augmentation.
        rank, world_size: this process gets its contiguous part of every batch.
        records: whether batches contain record numbers.
    """

    def __init__(
        self,
        data: DataSet,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        records: bool = False,
    ):
        if not world_size <= batch_size <= len(data.train):
            remedy = f"{len(data.train)} or less" if batch_size > len(data.train) else f"{world_size} or more"
            raise ValueError(
                f"batch_size={batch_size} must be between the number of processes, {world_size}, "
                f"and the number of training records, {len(data.train)}; set batch_size={remedy}"
            )
        self.data, self.batch_size, self.seed, self.records = data, batch_size, seed, records
        self.part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.batches_per_epoch = len(data.train) // batch_size

    def batch(self, number: int) -> Part:
        """Return this process's part of batch `number`, counted from 0.

        Returns:
            stored examples (n, ...), labels int64, random numbers of the augmentation (n, ...), and weights (n,)
            float32 if the records have them. Labels are (n,), or (n, L) padded with -1 if the records have several.
            With `records`, the weights or None, and the record numbers (n,).
        """
        epoch, position = divmod(number, self.batches_per_epoch)
        start = position * self.batch_size
        indices = shuffled(start + self.part.start, start + self.part.stop, len(self.data.train), self.seed, epoch)
        draws = self.data.augment.draws(hash64("augmentation", self.seed, epoch, indices))
        labels = torch.from_numpy(np.asarray(self.data.train.targets[indices], dtype=np.int64))
        return self.data.train.source.read(indices), labels, draws, *extras_of(self.data, indices, self.records)


class IdentityStream:
    """Stream of classes: each appears once per epoch with some of its records, chosen again each epoch.

    Args:
        data: the set with the training records. The records of a class in a batch are different ones. A class with
            fewer records than that repeats them, with different augmentations.
        batch_size: records of a batch over all processes, `images_per_class` for each class. An epoch drops the last
            classes that do not fill a batch.
        images_per_class: records of a class in a batch, at least 2.
        seed: seed of order, choice and augmentation.
        rank, world_size: this process gets its contiguous part of every batch.
        records: whether batches contain record numbers.
    """

    def __init__(
        self,
        data: DataSet,
        batch_size: int,
        *,
        images_per_class: int = 2,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        records: bool = False,
    ):
        if data.train.all_labels is not None:
            raise ValueError(
                "the training records have several labels, and the identity stream groups records of one class; use a "
                "head with class centers (full, pfc or forest), or give each record one label"
            )
        self.by_class = data.train.by_class or group(data.train.labels, data.train.num_classes)
        present = self.by_class.present
        self.num_classes = data.train.num_classes if present is None else len(present)
        self.images_per_class = whole("images_per_class", images_per_class, 2)
        self.classes_per_batch, rest = divmod(batch_size, self.images_per_class)
        if rest or not world_size <= self.classes_per_batch <= self.num_classes:
            k = self.images_per_class
            raise ValueError(
                f"batch_size={batch_size} of the identity stream must be a multiple of images_per_class={k}, from "
                f"{k * world_size}, a class for each process, to {k * self.num_classes}, all training classes"
            )
        self.data, self.batch_size, self.seed, self.records = data, batch_size, seed, records
        classes = self.classes_per_batch
        self.part = slice(rank * classes // world_size, (rank + 1) * classes // world_size)
        self.batches_per_epoch = self.num_classes // classes

    def batch(self, number: int) -> Part:
        """Return this process's part of batch `number`: block i of it has the i-th record of each of its n classes.

        Returns:
            stored examples (k n, ...), where examples j, n + j, 2 n + j, ... have one class; labels (k n,) int64,
            random numbers of the augmentation (k n, ...), and weights (k n,) float32 if the records have them. k is
            `images_per_class`. With `records`, the weights or None, and the record numbers (k n,).
        """
        epoch, position = divmod(number, self.batches_per_epoch)
        start = position * self.classes_per_batch
        key = (self.seed, epoch, IDENTITY)
        chosen = shuffled(start + self.part.start, start + self.part.stop, self.num_classes, *key)
        classes = chosen if self.by_class.present is None else self.by_class.present[chosen]
        starts = np.asarray(self.by_class.starts[classes], dtype=np.int64)
        counts = np.asarray(self.by_class.starts[classes + 1], dtype=np.int64) - starts
        draws = [uniforms("identity", self.seed, epoch, which, chosen) for which in range(self.images_per_class)]
        places = (starts + within_classes(counts, draws)).ravel()
        indices = np.asarray(self.by_class.order[places], dtype=np.int64)
        which = np.repeat(np.arange(self.images_per_class), len(chosen))
        augmentation = self.data.augment.draws(hash64("identity augmentation", self.seed, epoch, which, indices))
        labels = torch.from_numpy(np.tile(classes, self.images_per_class))
        return self.data.train.source.read(indices), labels, augmentation, *extras_of(self.data, indices, self.records)


def within_classes(counts: Indices, draws: Sequence[NDArray[np.float64]]) -> Indices:
    """Draw records of each class without replacement, and from the first again once all of them are drawn.

    Args:
        counts: (n,) records of each class, at least 1.
        draws: k arrays (n,) of uniform numbers in (0, 1).

    Returns:
        (k, n) positions in [0, count).
    """
    first = (draws[0] * counts).astype(np.int64)
    steps = np.zeros((len(draws), len(counts)), dtype=np.int64)  # from the first record on, in a circle
    for which, draw in enumerate(draws[1:], 1):
        step = 1 + (draw * np.maximum(counts - which, 0)).astype(np.int64)
        for taken in np.sort(steps[1:which], axis=0):
            step += step >= taken
        steps[which] = np.where(which < counts, step, steps[which % counts, np.arange(len(counts))])
    return (first + steps) % counts


def extras_of(data: DataSet, indices: Indices, records: bool) -> Part:
    """Return the last items of a batch of training records.

    Args:
        data: the set with the records.
        indices: (n,) their positions among the training records, the same on all processes and in a resumed training.
        records: whether to return record numbers.

    Returns:
        The weights (n,) float32, or nothing if the records have none. With `records`, the weights or None, and the
        positions (n,) int64.
    """
    weights = data.train.weights
    weight = None if weights is None else torch.from_numpy(np.asarray(weights[indices], dtype=np.float32))
    if records:
        return weight, torch.from_numpy(np.array(indices, dtype=np.int64))
    return () if weight is None else (weight,)


def shuffled(start: int, stop: int, size: int, *key: int) -> Indices:
    """Return the elements `start` to `stop` - 1 of a keyed permutation of 0 .. size - 1."""
    blocks = [_block(number, size, *key) for number in range(start // BLOCK, -(-stop // BLOCK))]
    return np.concatenate(blocks)[start % BLOCK :][: stop - start]


@lru_cache(maxsize=8)
def _block(number: int, size: int, *key: int) -> Indices:
    """Return one block of a permutation. For numpy, a few elements cost nearly as much as a block."""
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
        """Return the batch, or the error: torch would wrap a raised error in the worker's traceback."""
        try:
            return self.stream.batch(number)
        except ValueError as error:
            return error


class BatchLoader:
    """Loader of the batches 0 to `num_batches` - 1 of several streams, resumable at any of them.

    The state is the number of samples that training consumed; batches that workers prepared ahead do not count. Each
    stream has `num_workers` processes and continues with the next epoch when one ends.

    Args:
        streams: the streams by name.
        num_batches: number of batches.
        batch_size: samples of a batch, all streams together.
        num_workers: worker processes for each stream.
        ahead: batches that are prepared in addition to the returned one.

    Attributes:
        handed_out: number of batches returned.
        failure: why a batch after the prepared ones cannot be read, or None. The training can end cleanly before the
            iteration raises it.
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
        """Yield the batches. Raises ValueError at a batch that cannot be read, after all batches before it."""
        self.failure = None
        batches, ready = self._batches(), deque[Batch]()
        while True:
            while self.failure is None and len(ready) <= self.ahead:
                try:
                    ready.append(next(batches))
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
        """Return the number of samples that were returned."""
        return {"samples": self.handed_out * self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the samples of a state. Raises ValueError if they are not a whole number of batches."""
        batches, rest = divmod(state["samples"], self.batch_size)
        if rest:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide the {state['samples']} samples of the checkpoint; "
                "resume with the batch_size of the training"
            )
        self.handed_out = batches
