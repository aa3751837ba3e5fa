"""`bench=pool`: the class pool of `head=ffc`, a batch at a time, compared with plain LRU caches, a key at a time."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads import FFC
from heads.pool.class_pool import ClassPool

from .measure import median_and_spread, ratio, timed

Touch = Callable[[NDArray[np.int64]], object]


def pool(
    capacity: list[int],
    num_classes: list[int],
    batch: list[int],
    embedding_size: int,
    warmup: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Return a line for each combination; classes are uniform at random.

    `step_ms` is the time to plan and commit a batch. `speedup` is relative to an OrderedDict, `over_linked_list` to a
    dictionary with a linked list in Python, as in FFC's published code. `head_bytes` is the memory of `head=ffc` with a
    pool of this size.
    """
    lines = []
    for slots, C, N in product(capacity, num_classes, batch):
        ours = ClassPool(slots)
        touches: dict[str, Touch] = {
            "ours": lambda keys, ours=ours: ours.commit(ours.plan(keys)),  # type: ignore[misc]
            "ordered": OrderedLRU(slots).touch,
            "linked": LinkedLRU(slots).touch,
        }
        times = _interleaved(touches, slots, C, N, warmup, repeats)
        milliseconds, spread = median_and_spread(times["ours"])
        lines.append(
            {
                "capacity": slots,
                "num_classes": C,
                "batch": N,
                "step_ms": milliseconds,
                "spread_ms": spread,
                "ns_per_key": 1e6 * milliseconds / N,
                "speedup": ratio(times["ordered"], times["ours"]),
                "over_linked_list": ratio(times["linked"], times["ours"]),
                "pool_bytes": float(ours.nbytes),
                "head_bytes": FFC(C, embedding_size, queue_size=slots).stats()["memory_bytes"],
            }
        )
    return lines


def _interleaved(
    touches: Mapping[str, Touch], slots: int, C: int, N: int, warmup: int, repeats: int
) -> dict[str, list[float]]:
    """Return the milliseconds per batch of each pool, measured in turns once all slots are taken."""
    random = np.random.default_rng(0)
    for _ in range(-(-2 * slots // N)):  # until all slots are taken, and more
        keys = random.integers(0, C, N)
        for touch in touches.values():
            touch(keys)
    times: dict[str, list[float]] = {name: [] for name in touches}
    for repeat in range(warmup + repeats):
        batches = random.integers(0, C, (200, N))
        for name, touch in touches.items():
            milliseconds = timed(lambda touch=touch, batches=batches: [touch(keys) for keys in batches])[0]  # type: ignore[misc]
            if repeat >= warmup:
                times[name].append(milliseconds / len(batches))
    return times


class OrderedLRU:
    """An LRU cache as an OrderedDict, one key after the other."""

    def __init__(self, capacity: int):
        self.capacity, self.slots = capacity, OrderedDict[int, int]()

    def touch(self, keys: NDArray[np.int64]) -> list[int]:
        slots, result = self.slots, []
        for key in keys.tolist():
            if key in slots:
                slots.move_to_end(key)
            elif len(slots) < self.capacity:
                slots[key] = len(slots)
            else:
                slots[key] = slots.popitem(last=False)[1]
            result.append(slots[key])
        return result


class _Node:
    __slots__ = ("after", "before", "key", "slot")

    def __init__(self, key: int, slot: int):
        self.key, self.slot = key, slot
        self.before: _Node = self
        self.after: _Node = self


class LinkedLRU:
    """An LRU cache as a dictionary and a doubly linked list, one key after the other."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.nodes: dict[int, _Node] = {}
        self.ring = _Node(-1, -1)  # ring.after is the latest, ring.before the oldest

    def touch(self, keys: NDArray[np.int64]) -> list[int]:
        return [self._one(key) for key in keys.tolist()]

    def _one(self, key: int) -> int:
        node = self.nodes.get(key)
        if node is None:
            if len(self.nodes) < self.capacity:
                node = _Node(key, len(self.nodes))
            else:
                oldest = self.ring.before
                self._take_out(oldest)
                del self.nodes[oldest.key]
                node = _Node(key, oldest.slot)
            self.nodes[key] = node
        else:
            self._take_out(node)
        node.before, node.after = self.ring, self.ring.after
        node.after.before = self.ring.after = node
        return node.slot

    @staticmethod
    def _take_out(node: _Node) -> None:
        node.before.after, node.after.before = node.after, node.before
