"""Record sets: images or vectors with labels.

No Python object is kept for a record: a source reads by index, and labels are an array, memory-mapped or computed from
the index.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import lmdb
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .counter_rng import U64
from .preprocessing import Preprocessing

Indices = NDArray[np.int64]
CHUNK = 2**20  # labels or classes read together


class Source(Protocol):
    """Examples by index. A source must be picklable: workers open their own handles."""

    def __len__(self) -> int: ...

    def read(self, indices: Indices) -> Tensor:
        """Return stored examples: indices (n,) -> (n, *shape)."""
        ...


class Labels(Protocol):
    """Class ids by index: an array, or an object that computes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Indices, /) -> NDArray[np.int64]: ...


class Weights(Protocol):
    """Weights by index."""

    def __getitem__(self, indices: Indices, /) -> NDArray[np.float32]: ...


class ByClass(NamedTuple):
    """The records of each class: those of class c are order[starts[c] : starts[c + 1]]."""

    order: Labels
    starts: Labels
    present: Indices | None = None  # the classes with records; None if all have some


@dataclass(frozen=True)
class RecordSet:
    """Examples with labels in [0, num_classes).

    Args:
        source: the examples.
        labels: the class id of each example; the first one if it has several.
        num_classes: number of classes.
        by_class: the records of each class, by `labels`; computed from them where needed if None.
        weights: the weight of each example in the loss; None for equal weights.
        all_labels: all class ids of each example, (n, L) padded with -1; None if each example has one.
    """

    source: Source
    labels: Labels
    num_classes: int
    by_class: ByClass | None = None
    weights: Weights | None = None
    all_labels: Labels | None = None

    def __post_init__(self) -> None:
        for labels in (self.labels, self.targets):
            if len(self.source) != len(labels):
                raise ValueError(
                    f"the set has {len(self.source)} records but {len(labels)} labels; each record must have one"
                )

    def __len__(self) -> int:
        return len(self.source)

    @property
    def targets(self) -> Labels:
        """The class ids that a head trains on: (n,), or (n, L) padded with -1 if examples have several."""
        return self.labels if self.all_labels is None else self.all_labels

    def class_counts(self) -> NDArray[np.int64]:
        """Return the number of records of each class, (num_classes,), without a copy of the labels.

        A record with several labels counts for each of them.
        """
        counts = np.zeros(self.num_classes, dtype=np.int64)
        if self.by_class is not None and self.all_labels is None:
            for begin in range(0, self.num_classes, CHUNK):
                classes = np.arange(begin, min(begin + CHUNK, self.num_classes))
                ends, starts = (np.asarray(self.by_class.starts[classes + k], dtype=np.int64) for k in (1, 0))
                counts[classes] = ends - starts
            return counts
        for begin in range(0, len(self), CHUNK):
            present, number = np.unique(
                self.targets[np.arange(begin, min(begin + CHUNK, len(self)))], return_counts=True
            )
            counts[present[present >= 0]] += number[present >= 0]
        return counts


class Augmentation(Protocol):
    """Random changes of examples: drawn where batches are read, and applied on the training device."""

    def draws(self, keys: U64) -> Tensor:
        """Return the random numbers of examples: keys (n,) -> (n, numbers)."""
        ...

    def __call__(self, examples: Tensor, draws: Tensor, /) -> Tensor:
        """Return augmented examples, of the same shape (n, *shape). The input may be overwritten."""
        ...


@dataclass(frozen=True)
class DataSet:
    """The result of a `data` config: training classes, held-out classes, and the preparation of batches.

    Args:
        train: the training records.
        heldout: records of classes that are never trained on, with labels from 0; None if there are none.
        shape: shape of the backbone's input for one example, (C, H, W) or (D,).
        prepare: maps stored examples (n, ...) to floats (n, *shape), on the training device.
        augment: augmentation of prepared examples, on the training device.
        class_names: names of the training classes; empty if they have none.
        preprocessing: preprocessing that makes encoded images like these examples; None if examples are not images.
    """

    train: RecordSet
    heldout: RecordSet | None
    shape: tuple[int, ...]
    prepare: Callable[[Tensor], Tensor]
    augment: Augmentation
    class_names: Sequence[str] = ()
    preprocessing: Preprocessing | None = None

    def finish(self, examples: Tensor, draws: Tensor) -> Tensor:
        """Prepare and augment the stored examples of a training batch."""
        return self.augment(self.prepare(examples), draws)


class LmdbArrays:
    """Arrays (uint8) of one shape in an LMDB directory. Their keys are their indices, 8 bytes in big endian.

    Args:
        path: the directory.
        start, stop: range of the records of this source.
        shape: shape of one record.
    """

    def __init__(self, path: str | Path, start: int, stop: int, shape: tuple[int, ...]):
        self.path, self.start, self.stop, self.shape = str(path), start, stop, shape

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, indices: Indices) -> Tensor:
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        environment = opened(self.path, Path(self.path, "data.mdb").stat().st_ino)
        with environment.begin(buffers=True) as transaction:
            for place, index in enumerate(indices):
                value = transaction.get(key_of(self.start + int(index)))
                if value is None:
                    raise ValueError(f"{self.path} has no record {self.start + int(index)}")
                images[place] = np.frombuffer(value, np.uint8).reshape(self.shape)
        return torch.from_numpy(images)


@lru_cache(maxsize=256)
def opened(path: str, inode: int) -> lmdb.Environment:
    """Return the LMDB environment at `path`. A process keeps one, since LMDB refuses a second.

    Args:
        path: the directory of the database.
        inode: inode of data.mdb, by which a replaced file is recognized.

    Raises:
        ValueError: there is no database, or it is truncated: reading past its end would end the process.
    """
    size = Path(path, "data.mdb").stat().st_size
    if not size:
        raise ValueError(f"{path}: data.mdb is empty; copy or create the database again")
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.MemoryError:
        raise no_address_space(path, size) from None
    except lmdb.Error as error:
        raise ValueError(f"{path}: LMDB cannot open data.mdb ({error})") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        environment.close()
        raise ValueError(f"{path}: data.mdb is truncated to {size:,} of {needed:,} bytes; copy or create it again")
    return environment


def no_address_space(path: str, size: int) -> ValueError:
    """Return the error for a database that cannot be mapped."""
    import resource  # exists on Unix only

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    allowed = "" if limit == resource.RLIM_INFINITY else f", and this process may use {limit:,} (ulimit -v)"
    return ValueError(
        f"{path}: LMDB maps all {size:,} bytes of data.mdb into the address space{allowed}; raise the limit"
    )


# An environment must not be used across a fork, so workers open their own.
os.register_at_fork(after_in_child=opened.cache_clear)


def forget_opened() -> None:
    """Forget the opened environments. Each closes when its last reader ends, so that it can be opened for writing."""
    opened.cache_clear()


def key_of(index: int) -> bytes:
    """Return the key of a record."""
    return index.to_bytes(8, "big")


def normalize_pixels(images: Tensor) -> Tensor:
    """Map uint8 pixels 0 .. 255 to float32 -1 .. 1, as is usual in face recognition."""
    return images.float().div_(127.5).sub_(1)
