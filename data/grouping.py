"""Records grouped by class, out of core: the memory does not grow with the number of records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import ByClass, Indices, Labels

CHUNK = 2**22  # labels read together
BLOCK = 2**24  # records sorted together


def group(labels: Labels, num_classes: int, folder: Path | None = None) -> ByClass:
    """Return the records of each class, in ascending order.

    Args:
        labels: class ids below `num_classes`.
        folder: folder for `order.bin` and `starts.bin`; in memory if None.
    """
    starts = _array(num_classes + 1, np.int64, folder and folder / "starts.bin")
    for chunk in _chunks(len(labels)):
        classes, counts = np.unique(labels[chunk], return_counts=True)
        starts[classes + 1] += counts
    present = None if np.count_nonzero(starts[1:]) == num_classes else np.flatnonzero(starts[1:])
    for begin in range(0, num_classes, CHUNK):
        part = starts[begin : begin + CHUNK + 1]
        np.cumsum(part, out=part)
    order = _array(len(labels), index_dtype(len(labels)), folder and folder / "order.bin")
    # One pass over all labels for each block of classes, so that all reads and writes are sequential.
    first = 0
    while first < num_classes:
        end = int(np.searchsorted(starts, starts[first] + BLOCK, side="right")) - 1
        end = min(max(end, first + 1), num_classes)
        records, classes_of_records = [], []
        for chunk in _chunks(len(labels)):
            chunk_labels = np.asarray(labels[chunk])
            inside = np.flatnonzero((chunk_labels >= first) & (chunk_labels < end))
            records.append(inside + chunk[0])
            classes_of_records.append(chunk_labels[inside])
        by_class = np.argsort(np.concatenate(classes_of_records), kind="stable")
        order[starts[first] : starts[end]] = np.concatenate(records)[by_class]
        first = end
    return ByClass(order, starts, present)


def index_dtype(count: int) -> type[np.unsignedinteger]:
    """Return the smallest dtype for the indices of so many records."""
    return np.uint32 if count <= 2**32 else np.uint64


def _chunks(count: int) -> Iterator[Indices]:
    for begin in range(0, count, CHUNK):
        yield np.arange(begin, min(begin + CHUNK, count))


def _array(count: int, dtype: type[np.generic], path: Path | None) -> NDArray[Any]:
    return np.zeros(count, dtype) if path is None else np.memmap(path, dtype, "w+", shape=(count,))
