"""ClassPool: which classes hold which slots, the least recently used leaving first, a batch at a time.

Same slots and same victims as a plain LRU that takes one key after another, also where a class stands
twice in a batch or is evicted by the same batch that asks for it later. Memory is proportional to the
slots, not to the classes.

How: touches go to the end of a log of slots, and an entry counts while it is its slot's last one, so the
oldest slots are those of the first entries that count. A class of the batch is still in its slot when
its turn comes if fewer than `capacity` other classes were touched since its last touch (the LRU stack
distance); that can fail only for classes among the oldest slots, and only those are looked at closely.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

WAYS = 8  # classes in a bucket: one cache line
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Plan:
    """What a batch of classes would do to a pool; nothing is done until `ClassPool.commit`.

    Attributes:
        slots: (n,) slot of each class of the batch when its turn has come.
        hit: (n,) whether the class was in the pool when its turn came; True from its second occurrence on.
        evicted: (m,) classes that leave, in the order in which they do. One that the batch brings back is
            among them too.
    """

    slots: Ints
    hit: Bools
    evicted: Ints
    version: int
    entered: Ints  # distinct classes that take a slot, in the order of their first occurrence
    entered_slots: Ints
    evicted_slots: Ints
    touched_slots: Ints  # in the order of their last occurrence
    after: ClassPool | None = None  # the pool itself, where the batch holds more classes than slots


class ClassPool:
    """A batched LRU from class ids to slots 0 .. capacity - 1.

    Args:
        capacity: slots.
        num_classes: look classes up in a table of this size, which is faster, instead of by hashing.
    """

    def __init__(self, capacity: int, num_classes: int | None = None):
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: at least one slot is needed")
        self.capacity = capacity
        self.used = 0  # slots 0 .. used - 1 are taken
        self.class_of = np.full(capacity, -1, dtype=np.int64)
        self.version = 0  # counts commits: a plan belongs to one state
        self._table: _Buckets | _Dense = _Buckets(capacity) if num_classes is None else _Dense(num_classes)
        # The log of touches; `_stamp[slot]` is the place of the slot's last one.
        self._log = np.empty(2 * capacity + 4096, dtype=np.int64)
        self._head = self._tail = 0
        self._stamp = np.full(capacity, -1, dtype=np.int64)
        self._marked = np.zeros(capacity, dtype=np.bool_)  # scratch, always False between calls

    def lookup(self, classes: ArrayLike, plan: Plan | None = None) -> Ints:
        """(n,) -> the slot of each class, -1 if it has none; as they would be after `plan`. Touches nothing."""
        keys = _keys(classes)
        if plan is None:
            return self._table.find(keys)
        assert plan.version == self.version, "the pool has changed since this plan"
        if plan.after is not None:
            return plan.after.lookup(keys)
        slots = self._table.find(keys)
        found = slots >= 0
        self._marked[plan.evicted_slots] = True
        slots[found & self._marked[slots]] = -1
        self._marked[plan.evicted_slots] = False
        if len(plan.entered):
            order = np.argsort(plan.entered)
            place = np.searchsorted(plan.entered, keys, sorter=order)
            candidate = order[np.minimum(place, len(order) - 1)]
            entered = plan.entered[candidate] == keys
            slots[entered] = plan.entered_slots[candidate[entered]]
        return slots

    def plan(self, classes: ArrayLike) -> Plan:
        """What touching these classes (n,), one after the other, would do."""
        keys = _keys(classes)
        bits = len(keys).bit_length()
        if len(keys):
            assert keys.min() >= 0, "class ids must not be negative"
            assert keys.max() < 1 << (63 - bits), "class ids must leave room for positions"
        # Sorting class and position as one number groups the occurrences of a class, first to last.
        together = (keys << bits) | np.arange(len(keys))
        together.sort()
        by_class, position = together >> bits, together & ((1 << bits) - 1)
        starts = np.empty(len(keys) + 1, dtype=np.bool_)
        starts[:1] = starts[-1:] = True
        np.not_equal(by_class[1:], by_class[:-1], out=starts[1:-1])
        first = position[starts[:-1]]  # of each distinct class; by class
        if len(first) > self.capacity:
            return self._plan_in_parts(keys)
        last = position[starts[1:]]
        distinct = by_class[starts[:-1]]
        group = np.empty(len(keys), dtype=np.int64)  # which distinct class stands at a position
        group[position] = np.cumsum(starts[:-1]) - 1

        slots = self._table.find(distinct)
        num_evicted = int(np.count_nonzero(slots < 0)) - (self.capacity - self.used)
        evicted_slots = self._evict(num_evicted, slots, first) if num_evicted > 0 else slots[:0]
        missing = slots < 0
        enters = np.zeros(len(keys), dtype=np.bool_)
        enters[first[missing]] = True
        entering = group[enters]
        num_fresh = len(entering) - len(evicted_slots)
        entered_slots = np.concatenate([np.arange(self.used, self.used + num_fresh), evicted_slots])
        slots[entering] = entered_slots
        touches = np.zeros(len(keys), dtype=np.bool_)
        touches[last] = True
        return Plan(
            slots=slots.take(group),
            hit=~enters,
            evicted=self.class_of.take(evicted_slots),
            version=self.version,
            entered=distinct[entering],
            entered_slots=entered_slots,
            evicted_slots=evicted_slots,
            touched_slots=slots.take(group[touches]),
        )

    def commit(self, plan: Plan) -> None:
        """Do what was planned on the pool as it is now."""
        assert plan.version == self.version, "the pool has changed since this plan"
        if plan.after is not None:
            self.__dict__.update(plan.after.__dict__)
            self.version = plan.version + 1
            return
        self.version += 1
        self._table.remove(plan.evicted, plan.evicted_slots)
        self._table.insert(plan.entered, plan.entered_slots)
        self.class_of[plan.entered_slots] = plan.entered
        self.used += len(plan.entered) - len(plan.evicted)
        if self._tail + len(plan.touched_slots) > len(self._log):
            self._restart_log(self._in_order())
        end = self._tail + len(plan.touched_slots)
        self._log[self._tail : end] = plan.touched_slots
        self._stamp[plan.touched_slots] = np.arange(self._tail, end)
        self._tail = end

    def ages(self) -> Ints:
        """(used,) how many touches of other slots have come since each slot's last, at most."""
        return self._tail - 1 - self._stamp[: self.used]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.class_of, self._log, self._stamp, self._marked)) + self._table.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Classes and slots, the least recently used first."""
        slots = self._in_order()
        return {"capacity": self.capacity, "slots": slots, "classes": self.class_of[slots]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["capacity"] != self.capacity:
            raise ValueError(f"capacity={self.capacity}: the saved pool has {state['capacity']} slots")
        slots, classes = _keys(state["slots"]), _keys(state["classes"])
        self.class_of.fill(-1)
        self.class_of[slots] = classes
        self.used = len(slots)
        self._table.clear()
        self._table.insert(classes, slots)
        self._stamp.fill(-1)
        self._restart_log(slots)
        self.version += 1

    def _evict(self, count: int, slots: Ints, first: Ints) -> Ints:
        """The slots that the missing classes take, oldest first.

        Args:
            count: how many are missing beyond the free slots.
            slots: of each distinct class, -1 where missing. Those that lose theirs before their turn are set
                to -1 as well, and take one more.
            first: position of each distinct class in the batch.
        """
        held = slots[slots >= 0]
        oldest = self._oldest(len(slots) - (self.capacity - self.used))
        self._marked[held] = True
        claimed = self._marked.take(oldest)
        self._marked[held] = False
        if not claimed.any():
            return oldest[:count]
        lost = self._lost(oldest[claimed], np.flatnonzero(claimed), slots, first)
        stays = claimed & ~np.isin(oldest, slots[lost])
        slots[lost] = -1
        return oldest[~stays][: count + len(lost)]

    def _lost(self, claimed: Ints, age: Ints, slots: Ints, first: Ints) -> Ints:
        """Which distinct classes, whose slots are `claimed` and of this `age` (0 the oldest), go before their turn:
        those for which `capacity` classes or more are touched between their last touch and their first here."""
        held = np.flatnonzero(slots >= 0)
        held = held[np.argsort(slots[held])]
        index = held[np.searchsorted(slots[held], claimed)]
        turn = first[index]
        younger = self._stamp[slots[held]] > self._stamp[claimed][:, None]
        twice = np.count_nonzero(younger & (first[held] < turn[:, None]), axis=1)
        touched = (self.used - 1 - age) + np.searchsorted(np.sort(first), turn) - twice
        return index[touched >= self.capacity]

    def _oldest(self, count: int) -> Ints:
        """The `count` least recently used slots, oldest first."""
        width = count + count // 2 + 64
        while True:
            entries = self._log[self._head : min(self._head + width, self._tail)]
            places = np.arange(self._head, self._head + len(entries))
            counting = (self._stamp.take(entries) == places).nonzero()[0]
            if len(counting) >= count:
                self._head += int(counting[0])  # what lies before no longer counts
                return entries[counting[:count]]
            assert self._head + width < self._tail, "as many slots as are asked for must be in use"
            width *= 2

    def _in_order(self) -> Ints:
        """The slots in use, the least recently used first."""
        entries = self._log[self._head : self._tail]
        return entries[self._stamp[entries] == np.arange(self._head, self._tail)]

    def _restart_log(self, slots: Ints) -> None:
        self._log[: len(slots)] = slots
        self._stamp[slots] = np.arange(len(slots))
        self._head, self._tail = 0, len(slots)

    def _plan_in_parts(self, keys: Ints) -> Plan:
        """More classes than slots: some enter and leave within the batch."""
        after = copy.deepcopy(self)
        parts = []
        for start in range(0, len(keys), self.capacity):
            parts.append(after.plan(keys[start : start + self.capacity]))
            after.commit(parts[-1])
        none = keys[:0]
        return Plan(
            slots=np.concatenate([part.slots for part in parts]),
            hit=np.concatenate([part.hit for part in parts]),
            evicted=np.concatenate([part.evicted for part in parts]),
            version=self.version,
            entered=none,
            entered_slots=none,
            evicted_slots=none,
            touched_slots=none,
            after=after,
        )


class _Buckets:
    """Class -> slot by hashing into buckets of eight, on average at most one of them taken."""

    def __init__(self, capacity: int):
        self.log2_buckets = max(1, (capacity - 1).bit_length())
        self.place_of = np.zeros(capacity, dtype=np.int64)
        self.clear()

    def clear(self) -> None:
        self.classes = np.full((1 << self.log2_buckets, WAYS), -1, dtype=np.int64)
        self.slots = np.zeros(WAYS << self.log2_buckets, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        return self.classes.nbytes + self.slots.nbytes + self.place_of.nbytes

    def find(self, classes: Ints) -> Ints:
        bucket = self._bucket(classes)
        # `take` along an axis is several times faster than indexing.
        flat = (self.classes.take(bucket, axis=0) == classes[:, None]).reshape(-1).nonzero()[0]
        row = flat >> 3
        slots = np.full(len(classes), -1, dtype=np.int64)
        slots[row] = self.slots.take((bucket.take(row) << 3) + (flat & 7))
        return slots

    def remove(self, classes: Ints, slots: Ints) -> None:
        self.classes.reshape(-1)[self.place_of.take(slots)] = -1

    def insert(self, classes: Ints, slots: Ints) -> None:
        """New classes, each once."""
        flat = self.classes.reshape(-1)
        while len(classes):
            bucket = self._bucket(classes)
            place = (bucket << 3) + (self.classes.take(bucket, axis=0) < 0).argmax(axis=1)  # the first free one
            if flat.take(place).max() >= 0:
                self._grow(classes, slots)
                return
            flat[place] = classes
            self.slots[place] = slots
            self.place_of[slots] = place
            beaten = flat.take(place) != classes  # two of them chose the same place
            if not beaten.any():
                return
            classes, slots = classes[beaten], slots[beaten]

    def _grow(self, classes: Ints, slots: Ints) -> None:
        held = np.flatnonzero(self.classes.reshape(-1) >= 0)
        classes = np.concatenate([self.classes.reshape(-1)[held], classes])
        slots = np.concatenate([self.slots[held], slots])
        self.log2_buckets += 1
        self.clear()
        self.insert(classes, slots)

    def _bucket(self, classes: Ints) -> Ints:
        return ((classes.view(np.uint64) * MIX) >> np.uint64(64 - self.log2_buckets)).view(np.int64)


class _Dense:
    """Class -> slot in a table of all classes."""

    def __init__(self, num_classes: int):
        self.table = np.full(num_classes, -1, dtype=np.int64)

    def clear(self) -> None:
        self.table.fill(-1)

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def find(self, classes: Ints) -> Ints:
        return self.table[classes]

    def remove(self, classes: Ints, slots: Ints) -> None:
        self.table[classes] = -1

    def insert(self, classes: Ints, slots: Ints) -> None:
        self.table[classes] = slots


def _keys(classes: ArrayLike) -> Ints:
    keys = np.ascontiguousarray(classes, dtype=np.int64)
    assert keys.ndim == 1
    return keys
