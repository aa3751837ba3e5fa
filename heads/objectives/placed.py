"""Places of positives among the active rows, found chunk by chunk."""

from bisect import bisect_left
from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Pairs of a chunk of rows: row in the chunk, sample, and number of the pair."""

    rows: Tensor
    samples: Tensor
    pairs: Tensor

    @property
    def at(self) -> tuple[Tensor, Tensor]:
        """Index of a tensor (k, N)."""
        return self.rows, self.samples


class PlacedPairs:
    """Pairs of samples and active rows.

    Args:
        position_P: int64, position of each pair's row; -1 if another process owns it, or it is not active. The host
            needs the positions, so a tensor on the host avoids waiting for the device.
        sample_P: sample of each pair; None if pair i is sample i.
        device: where the pairs are used.
    """

    def __init__(self, position_P: Tensor, sample_P: Tensor | None, device: torch.device):
        # Sorted by position on the host, where a chunk finds its pairs by bisection.
        host_P = position_P.cpu()
        order_P = torch.argsort(host_P, stable=True)
        self._sorted: list[int] = host_P[order_P].tolist()
        self.position_P, self._order_P = position_P.to(device), order_P.to(device)
        self.sample_P = sample_P
        empty = self._order_P[:0]
        self._none = Places(empty, empty, empty)

    def within(self, a: int, b: int) -> Places:
        """Return the pairs of rows a to b."""
        begin, end = bisect_left(self._sorted, a), bisect_left(self._sorted, b)
        return self._none if begin == end else self._places(begin, end, a)  # most chunks of many classes have none

    @property
    def here(self) -> Places:
        """All pairs whose rows are active here."""
        return self._places(bisect_left(self._sorted, 0), len(self._sorted), 0)

    def _places(self, begin: int, end: int, a: int) -> Places:
        pairs = self._order_P[begin:end]
        return Places(self.position_P[pairs] - a, pairs if self.sample_P is None else self.sample_P[pairs], pairs)
