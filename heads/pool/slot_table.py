"""A hash table from classes to slots that looks up a batch of classes at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

WAYS = 8  # places in a bucket
MIX = np.uint64(0x9E3779B97F4A7C15)


class SlotTable:
    """Class -> slot by hashing.

    A class has a place of its own. If that is taken, it uses the first free one of the eight places of its bucket.
    There are at least eight times as many places as slots. A place holds fifteen bits of the class, so that the table
    is small and stays in the cache; `class_of` has the full class for comparison.

    Args:
        class_of: the class of each slot; the pool changes it in place.
    """

    def __init__(self, class_of: Ints):
        self.class_of = class_of
        self.log2_places = 3 + max(1, (len(class_of) - 1).bit_length())
        self.place_of = np.zeros(len(class_of), dtype=np.int64)
        self.clear()

    def clear(self) -> None:
        """Remove all classes."""
        self.shift = np.uint64(64 - self.log2_places)
        self.marks = np.full(1 << self.log2_places, -1, dtype=np.int16)  # -1: free
        self.slots = np.zeros(1 << self.log2_places, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        return self.marks.nbytes + self.slots.nbytes + self.place_of.nbytes

    def find(self, classes: Ints) -> Ints:
        """Return the slot of each class, -1 if it is not in the table."""
        bucket = self._place(classes) >> 3
        # `take` along an axis is several times faster than indexing.
        same = self.marks.reshape(-1, WAYS).take(bucket, axis=0) == _mark(classes)[:, None]
        flat = same.reshape(-1).nonzero()[0]
        row = flat >> 3
        candidate = self.slots.take((bucket.take(row) << 3) + (flat & 7))
        match = self.class_of.take(candidate) == classes.take(row)
        slots = np.full(len(classes), -1, dtype=np.int64)
        slots[row[match]] = candidate[match]
        return slots

    def remove(self, slots: Ints) -> None:
        """Remove the classes of these slots."""
        self.marks[self.place_of.take(slots)] = -1

    def insert(self, classes: Ints, slots: Ints) -> None:
        """Insert distinct new classes, which `class_of` holds already."""
        while len(classes):
            place = self._place(classes)
            taken = (self.marks.take(place) >= 0).nonzero()[0]
            if len(taken):
                bucket = place.take(taken) >> 3
                free = self.marks.reshape(-1, WAYS).take(bucket, axis=0) < 0
                place[taken] = (bucket << 3) + free.argmax(axis=1)
                if not free.view(np.uint64).all():  # a full bucket
                    self._grow(slots)
                    return
            self.marks[place] = _mark(classes)
            self.slots[place] = slots
            self.place_of[slots] = place
            lost = (self.slots.take(place) != slots).nonzero()[0]  # if several classes share a place, one stays
            classes, slots = classes[lost], slots[lost]

    def _grow(self, slots: Ints) -> None:
        slots = np.concatenate([self.slots[self.marks >= 0], slots])
        self.log2_places += 1
        self.clear()
        self.insert(self.class_of[slots], slots)

    def _place(self, classes: Ints) -> Ints:
        return ((classes.view(np.uint64) * MIX) >> self.shift).view(np.int64)


def _mark(classes: Ints) -> NDArray[np.int16]:
    return (classes & 0x7FFF).astype(np.int16)
