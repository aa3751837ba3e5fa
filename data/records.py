"""Record sets: where images or vectors come from, and their labels.

Nothing here is held per record in Python objects: a source reads by index, labels are an array
(memory-mapped, or computed from the index).
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


class Source(Protocol):
    """Examples by index. Must survive pickling: workers open their own handles."""

    def __len__(self) -> int: ...

    def read(self, indices: Indices) -> Tensor:
        """(n,) -> (n, *shape) as stored."""
        ...


class Labels(Protocol):
    """Class ids by index: an array, or something that computes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Indices, /) -> NDArray[np.int64]: ...


class ByClass(NamedTuple):
    """The records, class after class: those of class c are order[starts[c] : starts[c + 1]]."""

    order: Labels
    starts: Labels
    present: Indices | None = None  # classes with records; None where all have some


@dataclass(frozen=True)
class RecordSet:
    """Examples with labels in [0, num_classes).

    Args:
        by_class: where it is at hand; found from the labels otherwise.
    """

    source: Source
    labels: Labels
    num_classes: int
    by_class: ByClass | None = None

    def __post_init__(self) -> None:
        if len(self.source) != len(self.labels):
            raise ValueError(f"{len(self.source)} records but {len(self.labels)} labels: one label a record is needed")

    def __len__(self) -> int:
        return len(self.source)


class Augmentation(Protocol):
    """Random numbers are drawn where batches are read, by a key an example, and used where training runs."""

    def draws(self, keys: U64) -> Tensor:
        """(n,) -> (n, numbers)"""
        ...

    def __call__(self, examples: Tensor, draws: Tensor, /) -> Tensor:
        """Prepared examples (n, *shape), which may be written to -> the same shape."""
        ...


@dataclass(frozen=True)
class DataSet:
    """What a `data` config builds: classes to train on, others to judge on, and how a batch is prepared.

    Args:
        train: the training classes.
        heldout: classes never trained on, with labels of their own, from 0; None where there are none.
        shape: of one example as the backbone gets it, (C, H, W) or (D,).
        prepare: stored examples (n, ...) -> floats (n, *shape), where training runs, on its device.
        augment: of prepared examples, there too.
        preprocessing: how encoded images of other sources become the same; None where examples are no images.
        class_names: of the training classes; empty where they have none.
    """

    train: RecordSet
    heldout: RecordSet | None
    shape: tuple[int, ...]
    prepare: Callable[[Tensor], Tensor]
    augment: Augmentation
    class_names: Sequence[str] = ()
    preprocessing: Preprocessing | None = None

    def finish(self, examples: Tensor, draws: Tensor) -> Tensor:
        """Stored examples of a training batch -> what the backbone gets."""
        return self.augment(self.prepare(examples), draws)


class LmdbArrays:
    """uint8 arrays of one shape in an LMDB directory, under their index as 8 bytes, big endian.

    Args:
        path: the directory.
        start, stop: which of its records this source holds.
        shape: of one record.
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
                    raise ValueError(f"{self.path}: record {self.start + int(index)} is missing")
                images[place] = np.frombuffer(value, np.uint8).reshape(self.shape)
        return torch.from_numpy(images)


@lru_cache(maxsize=256)
def opened(path: str, inode: int) -> lmdb.Environment:
    """The environment at `path`, one for the whole process, since LMDB refuses a second.

    `inode` tells a file that was made anew from the one it replaced.

    Raises:
        ValueError: no database, or one that is cut off: reading past its end would end the process.
    """
    size = Path(path, "data.mdb").stat().st_size
    if not size:
        raise ValueError(f"{path}: data.mdb is empty; copy or make the database again")
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.MemoryError:
        raise no_address_space(path, size) from None
    except lmdb.Error as error:
        raise ValueError(f"{path}: LMDB cannot open it ({error})") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        environment.close()
        raise ValueError(f"{path}: data.mdb is cut off, {size:,} of {needed:,} bytes are there")
    return environment


def no_address_space(path: str, size: int) -> ValueError:
    """Return the error for a database that cannot be mapped."""
    import resource  # of Unix only

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    told = "" if limit == resource.RLIM_INFINITY else f", and this process may use {limit:,} (ulimit -v)"
    return ValueError(f"{path}: LMDB maps all {size:,} bytes of data.mdb into the address space{told}; raise the limit")


# An environment must not be used across a fork: workers open their own.
os.register_at_fork(after_in_child=opened.cache_clear)


def forget_opened() -> None:
    """Closes what `opened` keeps as soon as nobody reads it, so that it can be opened anew, to write or by others."""
    opened.cache_clear()


def key_of(index: int) -> bytes:
    return index.to_bytes(8, "big")


def normalize_pixels(images: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float32 -1 .. 1, the custom of face recognition."""
    return images.float().div_(127.5).sub_(1)
