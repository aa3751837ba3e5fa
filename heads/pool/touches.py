"""The distinct classes of a batch."""

from __future__ import annotations

import numpy as np

from .slot_table import Ints


def distinct_classes(keys: Ints) -> tuple[Ints, Ints, Ints | slice, Ints | slice]:
    """The classes of a batch (n,), each once: (class, position of its first occurrence), in the order of these; which
    of them stands at each position of the batch; and which they are in the order of their last occurrence."""
    n, bits = len(keys), len(keys).bit_length()
    positions = np.arange(n)
    # As unsigned numbers the negative ones are the largest.
    fit = not n or np.maximum.reduce(keys.view(np.uint64)) < 1 << (63 - bits)
    assert fit, "class ids must not be negative, and leave room for positions"
    # Sorting class and position as one number groups the occurrences of a class, first to last.
    together = (keys << bits) | positions
    together.sort()
    by_class = together >> bits
    new = by_class[1:] != by_class[:-1]
    if new.all():
        return keys, positions, slice(None), slice(None)
    position = together & ((1 << bits) - 1)
    ends = np.concatenate([[True], new, [True]])
    is_first, is_last = np.zeros((2, n), dtype=np.bool_)
    is_first[position[ends[:-1]]] = True
    is_last[position[ends[1:]]] = True
    rank = np.cumsum(is_first) - 1  # at its first occurrence: the place of a class among the distinct ones
    group = np.empty(n, dtype=np.int64)
    group[position] = rank[position[ends[:-1]]][np.cumsum(ends[:-1]) - 1]
    first = is_first.nonzero()[0]
    return keys[first], first, group, group[is_last]
