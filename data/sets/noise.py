"""Synthetic faults of a training set: label noise, imbalance and few images, to study their effect on a head.

All faults are keyed by seed, record and class. They apply to any set and keep about 20 bytes per label in memory.
`data=sphere` has the options `tail` and `conflict` of its own, which it computes without memory.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..counter_rng import hash64, permute, uniforms
from ..grouping import group
from ..records import DataSet, Indices, RecordSet
from .split import Subset

LEAST = 2  # images that a long tail leaves in the rarest class


def with_noise(
    data: DataSet,
    *,
    tail: float = 0.0,
    shallow: int | None = None,
    conflict: float = 0.0,
    flip: float = 0.0,
    seed: int = 0,
) -> DataSet:
    """Return a set with faults in its training records. The held-out classes do not change.

    Args:
        data: the set.
        tail: exponent of Zipf's law; of C classes in random order, the r-th keeps at most 2 (C / r) ** tail images.
        shallow: number of images that each class keeps at most, after `tail`; None for all. Two are shallow data, as of
            faces with a passport and a live image (Du et al., ECCV 2020).
        conflict: share of the classes that are split into two with half of the images each, so that one identity has
            two labels. The second halves get new class ids after all others.
        flip: share of the labels that become the label of another class.
        seed: seed of all random choices.

    Where records have several labels, `conflict` and `flip` treat each label as that of a record of its own, and a
    label that a record has already is left out. `tail` and `shallow` are refused.
    """
    if tail < 0:
        raise ValueError(f"noise.tail={tail} must be at least 0")
    if shallow is not None and shallow < 1:
        raise ValueError(f"noise.shallow={shallow} must be at least 1; 2 keeps two images of each class")
    for name, share in (("conflict", conflict), ("flip", flip)):
        if not 0 <= share <= 1:
            raise ValueError(f"noise.{name}={share} must be in [0, 1]; 0.1 affects a tenth")
    if tail == conflict == flip == 0 and shallow is None:
        return data
    train, names = data.train, data.class_names
    num_classes, source = train.num_classes, train.source
    all_labels = np.asarray(train.targets[np.arange(len(train))], dtype=np.int64)
    several = all_labels.ndim == 2
    for name, value in (("tail", tail), ("shallow", shallow)):
        if several and value:
            raise ValueError(
                f"noise.{name}={value} leaves out images class by class, and here an image has several labels and so "
                "belongs to several classes; remove it"
            )
    is_label = all_labels >= 0
    labels = all_labels[is_label] if several else all_labels  # one after the other
    if tail:
        kept = long_tail(labels, num_classes, tail, seed)
        source, labels = Subset(source, kept), labels[kept]
    if shallow is not None:
        kept = at_most(labels, num_classes, np.full(num_classes, shallow), "shallow", seed)
        source, labels = Subset(source, kept), labels[kept]
    if conflict:
        labels, split = split_classes(labels, num_classes, conflict, seed)
        num_classes += len(split)
        if len(names):
            names = [*names, *(f"{names[class_id]} (2)" for class_id in split.tolist())]
    if flip:
        labels = flip_labels(labels, num_classes, flip, seed)
    if several:
        all_labels[is_label] = labels
        all_labels = without_repetitions(all_labels)
        labels = all_labels[:, 0]
    by_class = group(labels, num_classes)
    noisy = RecordSet(source, labels, num_classes, by_class, all_labels=all_labels if several else None)
    return replace(data, train=noisy, class_names=names)


def without_repetitions(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return labels (n, L) with -1 in place of a label that is further left in its row."""
    repeated = np.zeros(labels.shape, dtype=bool)
    for place in range(1, labels.shape[1]):
        repeated[:, place] = (labels[:, :place] == labels[:, place, None]).any(axis=1)
    return np.where(repeated, -1, labels)


def long_tail(labels: NDArray[np.int64], num_classes: int, tail: float, seed: int) -> Indices:
    """Return the records that a long tail keeps, in ascending order."""
    rank = permute(np.arange(num_classes), num_classes, seed)
    return at_most(labels, num_classes, np.floor(LEAST * (num_classes / (rank + 1)) ** tail), "long tail", seed)


def at_most(labels: NDArray[np.int64], num_classes: int, limit: NDArray[Any], purpose: str, seed: int) -> Indices:
    """Return the records, in ascending order, if each class keeps a number of them at most, (num_classes,)."""
    order, within = _in_class(labels, num_classes, purpose, seed)
    return np.sort(order[within < limit[labels[order]]])


def split_classes(
    labels: NDArray[np.int64], num_classes: int, share: float, seed: int
) -> tuple[NDArray[np.int64], Indices]:
    """Return new labels and the classes that were split. The second half of the k-th is class num_classes + k."""
    counts = np.bincount(labels, minlength=num_classes)
    split = np.flatnonzero((uniforms("conflict", seed, np.arange(num_classes)) < share) & (counts >= 2))
    new_id = np.full(num_classes, -1)
    new_id[split] = num_classes + np.arange(len(split))
    order, within = _in_class(labels, num_classes, "conflict halves", seed)
    ordered = labels[order]
    moved = (new_id[ordered] >= 0) & (within >= (counts[ordered] + 1) // 2)
    labels = labels.copy()
    labels[order[moved]] = new_id[ordered[moved]]
    return labels, split


def flip_labels(labels: NDArray[np.int64], num_classes: int, share: float, seed: int) -> NDArray[np.int64]:
    """Return new labels, each of another class with probability `share`."""
    if num_classes < 2:
        raise ValueError(f"noise.flip={share} needs at least two classes; the set has one, so no other label exists")
    records = np.arange(len(labels))
    offset = 1 + (uniforms("flip by", seed, records) * (num_classes - 1)).astype(np.int64)
    return np.where(uniforms("flip", seed, records) < share, (labels + offset) % num_classes, labels)


def _in_class(labels: NDArray[np.int64], num_classes: int, purpose: str, seed: int) -> tuple[Indices, Indices]:
    """Return the records by class, shuffled within each class, and the position of each in its class."""
    order = np.lexsort((hash64(purpose, seed, np.arange(len(labels))), labels))
    counts = np.bincount(labels, minlength=num_classes)
    return order, np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
