"""The distinct classes of a batch."""

from __future__ import annotations

import numpy as np

from .slot_table import Ints


def distinct_classes(keys: Ints) -> tuple[Ints, Ints, Ints | slice, Ints | slice]:
    """Find the distinct classes of a batch.

    Args:
        keys: int64 (n,) class ids, not negative.

    Returns:
        The distinct classes (d,) in the order of their first occurrence; the positions of these occurrences (d,); for
        each position of the batch, the index of its class among the distinct ones (n,); and these indexes in the order
        of the classes' last occurrence (d,).
    """
    n, bits = len(keys), len(keys).bit_length()
    positions = np.arange(n)
    # As unsigned numbers, negative ids are the largest.
    fits = not n or np.maximum.reduce(keys.view(np.uint64)) < 1 << (63 - bits)
    assert fits, "class ids must not be negative, and must leave room for positions"
    # Sorting class and position as one number groups the occurrences of a class, first to last.
    keys_and_positions = (keys << bits) | positions
    keys_and_positions.sort()
    by_class = keys_and_positions >> bits
    new = by_class[1:] != by_class[:-1]
    if new.all():
        return keys, positions, slice(None), slice(None)
    position = keys_and_positions & ((1 << bits) - 1)
    ends = np.concatenate([[True], new, [True]])
    is_first, is_last = np.zeros((2, n), dtype=np.bool_)
    is_first[position[ends[:-1]]] = True
    is_last[position[ends[1:]]] = True
    rank = np.cumsum(is_first) - 1  # at a first occurrence: the index of its class among the distinct ones
    group = np.empty(n, dtype=np.int64)
    group[position] = rank[position[ends[:-1]]][np.cumsum(ends[:-1]) - 1]
    first_position = is_first.nonzero()[0]
    return keys[first_position], first_position, group, group[is_last]
