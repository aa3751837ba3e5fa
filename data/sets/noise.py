"""Faults of labels and of balance put into a training set on purpose, to study what they do to a head.

All are keyed by seed, record and class. They keep about 20 bytes a record in memory.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..counter_rng import hash64, permute, uniforms
from ..grouping import group
from ..records import DataSet, Indices, RecordSet
from .split import Subset

LEAST = 2  # images that a long tail leaves a class


def with_noise(data: DataSet, *, tail: float = 0.0, conflict: float = 0.0, flip: float = 0.0, seed: int = 0) -> DataSet:
    """The same set with other training records or labels; classes held out stay as they are.

    Args:
        tail: exponent of Zipf's law: of C classes the r-th, in a random order, keeps 2 (C / r) ** tail images at most.
        conflict: share of the classes that are split into two of half the images each: one identity with two labels.
            The second halves get new ids after all others.
        flip: share of the records that get the label of another class.
        seed: of what is chosen.
    """
    if tail < 0:
        raise ValueError(f"noise.tail={tail}: must not be negative")
    for name, share in (("conflict", conflict), ("flip", flip)):
        if not 0 <= share <= 1:
            raise ValueError(f"noise.{name}={share}: a share in [0, 1] is needed")
    if tail == conflict == flip == 0:
        return data
    train, names = data.train, data.class_names
    labels = np.asarray(train.labels[np.arange(len(train))], dtype=np.int64)
    num_classes, source = train.num_classes, train.source
    if tail:
        kept = long_tail(labels, num_classes, tail, seed)
        source, labels = Subset(source, kept), labels[kept]
    if conflict:
        labels, split = split_classes(labels, num_classes, conflict, seed)
        num_classes += len(split)
        if len(names):
            names = [*names, *(f"{names[place]} (2)" for place in split.tolist())]
    if flip:
        labels = flip_labels(labels, num_classes, flip, seed)
    return replace(data, train=RecordSet(source, labels, num_classes, group(labels, num_classes)), class_names=names)


def long_tail(labels: NDArray[np.int64], num_classes: int, tail: float, seed: int) -> Indices:
    """The records that stay, in order."""
    rank = permute(np.arange(num_classes), num_classes, seed)
    limit = np.floor(LEAST * (num_classes / (rank + 1)) ** tail)
    order, within = _in_class(labels, num_classes, "long tail", seed)
    return np.sort(order[within < limit[labels[order]]])


def split_classes(
    labels: NDArray[np.int64], num_classes: int, share: float, seed: int
) -> tuple[NDArray[np.int64], Indices]:
    """New labels, and the classes that were split: the second half of the k-th of them is class num_classes + k."""
    counts = np.bincount(labels, minlength=num_classes)
    split = np.flatnonzero((uniforms("conflict", seed, np.arange(num_classes)) < share) & (counts >= 2))
    new_id = np.full(num_classes, -1)
    new_id[split] = num_classes + np.arange(len(split))
    order, within = _in_class(labels, num_classes, "conflict halves", seed)
    of = labels[order]
    moved = (new_id[of] >= 0) & (within >= (counts[of] + 1) // 2)
    labels = labels.copy()
    labels[order[moved]] = new_id[of[moved]]
    return labels, split


def flip_labels(labels: NDArray[np.int64], num_classes: int, share: float, seed: int) -> NDArray[np.int64]:
    """New labels, each of another class with probability `share`."""
    if num_classes < 2:
        raise ValueError(f"noise.flip={share}: there is one class only, and no other label to give")
    records = np.arange(len(labels))
    by = 1 + (uniforms("flip by", seed, records) * (num_classes - 1)).astype(np.int64)
    return np.where(uniforms("flip", seed, records) < share, (labels + by) % num_classes, labels)


def _in_class(labels: NDArray[np.int64], num_classes: int, purpose: str, seed: int) -> tuple[Indices, Indices]:
    """The records in the order of their classes and at random within, and the place of each in its class."""
    order = np.lexsort((hash64(purpose, seed, np.arange(len(labels))), labels))
    counts = np.bincount(labels, minlength=num_classes)
    return order, np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
