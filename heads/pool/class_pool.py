"""ClassPool: an LRU cache from classes to slots that processes a batch at a time.

Slots and evictions equal those of a plain LRU that processes one class after another. This includes classes that occur
twice in a batch, and classes that a batch first evicts and then brings back. Memory is proportional to the slots, not
to the classes.

Algorithm: each touch appends its slot to a log. An entry is valid while it is the last one of its slot, so the oldest
slots are those of the first valid entries. A class of the batch is still in its slot at its turn if fewer than
`capacity` other classes were touched since its last touch (the LRU stack distance). This can fail only for classes in
the oldest slots, and only those are checked exactly.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .slot_table import Bools, Ints, SlotTable
from .touches import distinct_classes


class Plan(NamedTuple):
    """The effect of a batch of classes on a pool, which changes only in `ClassPool.commit`.

    Attributes:
        slots: (n,) slot of each class of the batch at its turn.
        hit: (n,) whether the class was in the pool at its turn; True from its second occurrence on.
        evicted: (m,) classes that leave, in order, including those that the batch brings back.
        version: the state of the pool that the plan belongs to.
        entered: distinct classes that take a slot, in the order of their first occurrence.
        entered_slots: their slots.
        evicted_slots: slots of the evicted classes.
        touched_slots: slots of the batch, in the order of their last touch.
        after: the resulting pool, if the batch has more classes than the pool has slots.
    """

    slots: Ints
    hit: Bools
    evicted: Ints
    version: int
    entered: Ints
    entered_slots: Ints
    evicted_slots: Ints
    touched_slots: Ints
    after: ClassPool | None = None


class ClassPool:
    """A batched LRU cache from class ids to slots 0 .. capacity - 1.

    Args:
        capacity: number of slots, at least 1 and fewer than 2^29.

    Raises:
        ValueError: `capacity` out of range.
    """

    def __init__(self, capacity: int):
        if not 1 <= capacity < 1 << 29:
            raise ValueError(f"capacity={capacity} must be at least 1 and less than 2^29")
        self.capacity = capacity
        self.used = 0  # slots 0 .. used - 1 are taken
        self.class_of = np.full(capacity, -1, dtype=np.int64)
        self.version = 0  # counts commits: a plan belongs to one state
        self._table = SlotTable(self.class_of)
        # The log of touches; `_stamp[slot]` is the position of the slot's last touch.
        self._log = np.empty(2 * capacity + 4096, dtype=np.int64)
        self._head = self._tail = 0
        self._stamp = np.full(capacity, -1, dtype=np.int32)
        self._marked = np.zeros(capacity, dtype=np.bool_)  # workspace, always False between calls

    def lookup(self, classes: ArrayLike, plan: Plan | None = None) -> Ints:
        """Return the slot of each class (n,), -1 without one, without touching it.

        Args:
            classes: int64 (n,) class ids.
            plan: if given, return the slots after this plan.
        """
        keys = _keys(classes)
        if plan is None:
            return self._table.find(keys)
        assert plan.version == self.version, "the pool has changed since this plan"
        if plan.after is not None:
            return plan.after.lookup(keys)
        slots = self._table.find(keys)
        present = slots >= 0
        self._marked[plan.evicted_slots] = True
        slots[present & self._marked[slots]] = -1
        self._marked[plan.evicted_slots] = False
        if len(plan.entered):
            order = np.argsort(plan.entered)
            place = np.searchsorted(plan.entered, keys, sorter=order)
            candidate = order[np.minimum(place, len(order) - 1)]
            entered = plan.entered[candidate] == keys
            slots[entered] = plan.entered_slots[candidate[entered]]
        return slots

    def plan(self, classes: ArrayLike) -> Plan:
        """Return the effect of touching these classes (n,) one after another."""
        keys = _keys(classes)
        distinct, first_position, group, by_last = distinct_classes(keys)
        if len(distinct) > self.capacity:
            return self._plan_in_parts(keys)
        slots = self._table.find(distinct)
        missing = slots < 0
        num_missing, num_free = int(np.count_nonzero(missing)), self.capacity - self.used
        evicted_slots = slots[:0]
        if num_missing > num_free:
            evicted_slots = self._evict(num_missing - num_free, slots, first_position)
            missing = slots < 0
        entered = distinct[missing]
        num_fresh = len(entered) - len(evicted_slots)
        entered_slots = evicted_slots
        if num_fresh:
            entered_slots = np.concatenate([np.arange(self.used, self.used + num_fresh), evicted_slots])
        slots[missing] = entered_slots
        hit = np.ones(len(keys), dtype=np.bool_)
        hit[first_position] = ~missing
        return Plan(
            slots=slots[group],
            hit=hit,
            evicted=self.class_of.take(evicted_slots),
            version=self.version,
            entered=entered,
            entered_slots=entered_slots,
            evicted_slots=evicted_slots,
            touched_slots=slots[by_last],
        )

    def commit(self, plan: Plan) -> None:
        """Carry out a plan of the pool in its current state."""
        assert plan.version == self.version, "the pool has changed since this plan"
        if plan.after is not None:
            self.__dict__.update(plan.after.__dict__)
            self.version = plan.version + 1
            return
        self.version += 1
        self.class_of[plan.entered_slots] = plan.entered
        self._table.remove(plan.evicted_slots)
        self._table.insert(plan.entered, plan.entered_slots)
        self.used += len(plan.entered) - len(plan.evicted)
        if self._tail + len(plan.touched_slots) > len(self._log):
            self._restart_log(self._in_order())
        end = self._tail + len(plan.touched_slots)
        self._log[self._tail : end] = plan.touched_slots
        self._stamp[plan.touched_slots] = np.arange(self._tail, end, dtype=np.int32)
        self._tail = end

    def ages(self) -> Ints:
        """Return for each slot in use, (used,), an upper bound of the touches of other slots since its last one."""
        return self._tail - 1 - self._stamp[: self.used].astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in (self.class_of, self._log, self._stamp, self._marked)) + self._table.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return classes and slots, the least recently used first."""
        slots = self._in_order()
        return {"capacity": self.capacity, "slots": slots, "classes": self.class_of[slots]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: the saved pool has another capacity.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"capacity={self.capacity} cannot load a saved pool with {state['capacity']} slots; use its capacity"
            )
        slots, classes = _keys(state["slots"]), _keys(state["classes"])
        self.class_of.fill(-1)
        self.class_of[slots] = classes
        self.used = len(slots)
        self._table.clear()
        self._table.insert(classes, slots)
        self._stamp.fill(-1)
        self._restart_log(slots)
        self.version += 1

    def _evict(self, count: int, slots: Ints, first_position: Ints) -> Ints:
        """Return the slots that the missing classes take, oldest first.

        Args:
            count: number of missing classes beyond the free slots.
            slots: slot of each distinct class, -1 for missing ones; changed in place. Classes evicted before their
                turn become missing too, and need one more slot each.
            first_position: ascending position in the batch at which each distinct class occurs first.
        """
        oldest = self._oldest(len(slots) - (self.capacity - self.used))
        held = (slots >= 0).nonzero()[0]
        stamps = self._stamp.take(slots.take(held))
        old = stamps <= self._stamp[oldest[-1]]
        if not old.any():
            return oldest[:count]
        # A class is evicted before its turn if `capacity` or more other classes were touched between its last touch
        # and its first position.
        claimed, stamp = held[old], stamps[old][:, None]
        age = np.searchsorted(self._stamp.take(oldest), stamps[old])  # its position among the oldest
        twice = np.count_nonzero((stamps > stamp) & (held < claimed[:, None]), axis=1)  # touched before and again
        gone = (self.used - 1 - age) + claimed - twice >= self.capacity
        slots[claimed[gone]] = -1
        leaves = np.ones(len(oldest), dtype=np.bool_)
        leaves[age[~gone]] = False
        return oldest[leaves][: count + np.count_nonzero(gone)]

    def _oldest(self, count: int) -> Ints:
        """Return the `count` least recently used slots, oldest first."""
        width = count + count // 4 + 64
        while True:
            entries = self._log[self._head : min(self._head + width, self._tail)]
            places = np.arange(self._head, self._head + len(entries), dtype=np.int32)
            valid = (self._stamp.take(entries) == places).nonzero()[0]
            if len(valid) >= count:
                self._head += int(valid[0])  # earlier entries are never valid again
                return entries.take(valid[:count])
            assert self._head + width < self._tail, "count must not exceed the slots in use"
            width *= 2

    def _in_order(self) -> Ints:
        """Return the slots in use, the least recently used first."""
        entries = self._log[self._head : self._tail]
        return entries[self._stamp[entries] == np.arange(self._head, self._tail)]

    def _restart_log(self, slots: Ints) -> None:
        self._log[: len(slots)] = slots
        self._stamp[slots] = np.arange(len(slots))
        self._head, self._tail = 0, len(slots)

    def _plan_in_parts(self, keys: Ints) -> Plan:
        """Plan a batch with more classes than slots: some enter and leave within the batch."""
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


def _keys(classes: ArrayLike) -> Ints:
    keys = np.ascontiguousarray(classes, dtype=np.int64)
    assert keys.ndim == 1
    return keys
