"""Records by class, found from their labels out of core: memory is bounded, whatever the number of records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import ByClass, Indices, Labels

CHUNK = 2**22  # labels looked at together
BLOCK = 2**24  # records sorted together


def group(labels: Labels, num_classes: int, folder: Path | None = None) -> ByClass:
    """The records of each class, in their order.

    Args:
        labels: class ids below `num_classes`.
        folder: where `order.bin` and `starts.bin` are written; in memory unless given.
    """
    starts = _array(num_classes + 1, np.int64, folder and folder / "starts.bin")
    for chunk in _chunks(len(labels)):
        classes, counts = np.unique(labels[chunk], return_counts=True)
        starts[classes + 1] += counts
    present = None if np.count_nonzero(starts[1:]) == num_classes else np.flatnonzero(starts[1:])
    for begin in range(0, num_classes, CHUNK):
        stretch = starts[begin : begin + CHUNK + 1]
        np.cumsum(stretch, out=stretch)
    order = _array(len(labels), index_dtype(len(labels)), folder and folder / "order.bin")
    # A pass over all labels for each block of classes: reads and writes in sequence only.
    first = 0
    while first < num_classes:
        end = int(np.searchsorted(starts, starts[first] + BLOCK, side="right")) - 1
        end = min(max(end, first + 1), num_classes)
        found, of_class = [], []
        for chunk in _chunks(len(labels)):
            of_chunk = np.asarray(labels[chunk])
            inside = np.flatnonzero((of_chunk >= first) & (of_chunk < end))
            found.append(inside + chunk[0])
            of_class.append(of_chunk[inside])
        in_order = np.argsort(np.concatenate(of_class), kind="stable")
        order[starts[first] : starts[end]] = np.concatenate(found)[in_order]
        first = end
    return ByClass(order, starts, present)


def index_dtype(count: int) -> type[np.unsignedinteger]:
    """The smallest that tells so many records apart."""
    return np.uint32 if count <= 2**32 else np.uint64


def _chunks(count: int) -> Iterator[Indices]:
    for begin in range(0, count, CHUNK):
        yield np.arange(begin, min(begin + CHUNK, count))


def _array(count: int, dtype: type[np.generic], path: Path | None) -> NDArray[Any]:
    return np.zeros(count, dtype) if path is None else np.memmap(path, dtype, "w+", shape=(count,))
