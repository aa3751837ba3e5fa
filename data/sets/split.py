"""Open-set splits into training classes and held-out classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..counter_rng import permute
from ..records import ByClass, Indices, Labels, RecordSet, Source

BLOCK = 2**16  # classes processed together


def hold_out(
    records: RecordSet, names: Sequence[str], num_heldout: int | None, seed: int
) -> tuple[RecordSet, RecordSet | None, Sequence[str]]:
    """Hold out classes of at least two records.

    The training records are a view: nothing is copied, and its memory does not grow with the records or classes.

    The first label of a record decides. Records of a held-out class have one label, and training records with several
    labels lose those that are held out.

    Args:
        records: records with `by_class`; every class has a record, if each record has one label.
        names: names of all classes; empty if they are named by their ids.
        num_heldout: number of held-out classes; a twentieth of all, at most 500, if None.
        seed: seed of the choice of classes.

    Returns:
        training records, held-out records or None, and the names of the training classes.
    """
    by_class, num_classes = records.by_class, records.num_classes
    assert by_class is not None and by_class.present is None
    heldout = _heldout_classes(by_class.starts, num_classes, num_heldout, seed)
    if not len(heldout):
        return records, None, names
    starts, ends = (np.asarray(by_class.starts[heldout + k], dtype=np.int64) for k in (0, 1))
    records_of_classes = [by_class.order[np.arange(start, end)] for start, end in zip(starts, ends, strict=True)]
    evaluation = RecordSet(
        Subset(records.source, np.concatenate(records_of_classes).astype(np.int64)),
        np.repeat(np.arange(len(heldout)), ends - starts),
        len(heldout),
    )
    removed = np.cumsum(ends - starts)
    view = InClassOrder(by_class.order, starts - (removed - (ends - starts)), removed, len(records) - int(removed[-1]))
    classes = RemainingClasses(heldout, num_classes - len(heldout))
    train = RecordSet(
        ViewedSource(records.source, view),
        RemainingLabels(records.labels, view, heldout),
        len(classes),
        ByClass(Identity(len(view)), RemainingStarts(by_class.starts, classes, heldout, removed)),
        all_labels=None if records.all_labels is None else RemainingLabels(records.all_labels, view, heldout),
    )
    return train, evaluation, RemainingNames(names, classes)


def _heldout_classes(starts: Labels, num_classes: int, num_heldout: int | None, seed: int) -> Indices:
    """Return the held-out classes, sorted; none by default if too few classes have two records."""
    default = min(num_classes // 20, 500)
    wanted = (default if default >= 2 else 0) if num_heldout is None else num_heldout
    if wanted and not 2 <= wanted <= num_classes - 2:
        raise ValueError(
            f"data.num_heldout={wanted} must be 0 or in [2, {max(num_classes - 2, 2)}], which leaves two of the "
            f"{num_classes:,} classes to train on"
        )
    heldout = _chosen(starts, num_classes, wanted, seed)
    if len(heldout) < wanted and num_heldout is None:
        return heldout[:0]
    if len(heldout) < wanted:
        raise ValueError(
            f"data.num_heldout={wanted} is too large: only {len(heldout):,} of the {num_classes:,} classes have the "
            "two images that the evaluation needs"
        )
    return heldout


def _chosen(starts: Labels, num_classes: int, wanted: int, seed: int) -> Indices:
    """Return the first `wanted` classes of at least two records in a keyed order, sorted."""
    chosen: list[int] = []
    for begin in range(0, num_classes, BLOCK):
        classes = permute(np.arange(begin, min(begin + BLOCK, num_classes)), num_classes, seed)
        chosen += classes[starts[classes + 1] - starts[classes] >= 2].tolist()
        if len(chosen) >= wanted:
            break
    return np.sort(np.array(chosen[:wanted], dtype=np.int64))


@dataclass(frozen=True)
class Subset:
    """Chosen records of a source, in the order of `indices`."""

    source: Source
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Indices) -> Tensor:
        return self.source.read(self.indices[indices])


@dataclass(frozen=True)
class InClassOrder:
    """The training records, class after class: number -> record.

    Args:
        order: order of all records by class.
        before: number of training records before each held-out class.
        removed: number of held-out records up to and including each held-out class.
        count: number of training records.
    """

    order: Labels
    before: Indices
    removed: Indices
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Indices) -> Indices:
        passed = np.searchsorted(self.before, indices, side="right")
        return np.asarray(self.order[indices + _at(self.removed, passed)], dtype=np.int64)


@dataclass(frozen=True)
class ViewedSource:
    """The training records of a source."""

    source: Source
    view: InClassOrder

    def __len__(self) -> int:
        return len(self.view)

    def read(self, indices: Indices) -> Tensor:
        return self.source.read(self.view[np.asarray(indices)])


@dataclass(frozen=True)
class RemainingLabels:
    """Class ids of the training records, without gaps; -1 for held-out classes and for padding."""

    labels: Labels
    view: InClassOrder
    heldout: Indices

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, indices: Indices) -> NDArray[np.int64]:
        before = np.asarray(self.labels[self.view[np.asarray(indices)]], dtype=np.int64)
        place = np.searchsorted(self.heldout, before)
        if before.ndim == 1:
            return before - place
        left_out = (before < 0) | (self.heldout[np.minimum(place, len(self.heldout) - 1)] == before)
        return np.where(left_out, -1, before - place)


@dataclass(frozen=True)
class RemainingClasses:
    """The training classes: number -> class."""

    heldout: Indices
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, numbers: Indices) -> Indices:
        # If class h is the k-th held-out class, the training classes from number h - k on come after it.
        return numbers + np.searchsorted(self.heldout - np.arange(len(self.heldout)), numbers, side="right")


@dataclass(frozen=True)
class RemainingStarts:
    """The first training record of each training class."""

    starts: Labels
    classes: RemainingClasses
    heldout: Indices
    removed: Indices

    def __len__(self) -> int:
        return len(self.classes) + 1

    def __getitem__(self, numbers: Indices) -> Indices:
        classes = self.classes[np.asarray(numbers)]
        starts = np.asarray(self.starts[classes], dtype=np.int64)
        return starts - _at(self.removed, np.searchsorted(self.heldout, classes))


@dataclass(frozen=True)
class RemainingNames(Sequence[str]):
    """Names of the training classes."""

    names: Sequence[str]
    classes: RemainingClasses

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), BLOCK):
            classes = self.classes[np.arange(begin, min(begin + BLOCK, len(self)))].tolist()
            yield from (self.names[class_id] for class_id in classes) if len(self.names) else map(str, classes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name = int(self.classes[np.asarray(range(len(self))[index])])
        return self.names[name] if len(self.names) else str(name)


@dataclass(frozen=True)
class Identity:
    """The numbers 0, 1, ...: the order of records that are sorted by class already."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Indices) -> Indices:
        return np.asarray(indices)


def _at(totals: Indices, passed: Indices) -> Indices:
    """Return the total after `passed` classes, 0 after none."""
    return np.where(passed > 0, totals[passed - 1], 0)
