"""Ranks of the mates of probes, and the metrics of identification that follow from them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .search import KnownPairs

CMC_POINTS = 200
MAX_PAIRS = 2 * 10**7  # most pairs of a probe and a mate: 3.4 GB


def mate_pairs(probe_P: NDArray[np.int64], gallery_G: NDArray[np.int64], leave_one_out: bool) -> KnownPairs:
    """Return each probe with the items of its class.

    Args:
        probe_P: class of each probe.
        gallery_G: class of each gallery item.
        leave_one_out: probes and gallery are the same items, and a probe is no mate of itself.
    """
    order = np.argsort(gallery_G, kind="stable")
    starts = np.searchsorted(gallery_G[order], probe_P, side="left")
    counts = np.searchsorted(gallery_G[order], probe_P, side="right") - starts
    if counts.sum() > MAX_PAIRS:
        raise ValueError(
            f"identification has {counts.sum():,} pairs of a probe and an image of its class, which do not fit into "
            "memory; use fewer probes, or fewer images of a class"
        )
    probe_M = np.repeat(np.arange(len(probe_P)), counts)
    within = np.arange(len(probe_M)) - np.repeat(np.cumsum(counts) - counts, counts)
    item_M = order[np.repeat(starts, counts) + within]
    is_mate_M = probe_M != item_M if leave_one_out else np.ones(len(probe_M), bool)
    return KnownPairs(*(torch.from_numpy(np.ascontiguousarray(array)) for array in (probe_M, item_M, is_mate_M)))


class Ranks:
    """Ranks of the mates of probes. Strangers of the same score come first; see `search`.

    Args:
        known: probes with the items of their classes.
        above_M: number of strangers that come before the mate of each known pair.
        class_P: class of each probe.
        mates: "best" for the rank of a probe's best mate, "each" for the ranks of all its mates.
    """

    def __init__(self, known: KnownPairs, above_M: Tensor, class_P: NDArray[np.int64], mates: str):
        probe_M, above = known.probe_M[known.is_mate_M].numpy(), above_M[known.is_mate_M].numpy()
        order = np.lexsort((above, probe_M))
        probe_M, above = probe_M[order], above[order]
        probes, starts, counts = np.unique(probe_M, return_index=True, return_counts=True)
        place_M = 1 + np.arange(len(probe_M)) - np.repeat(starts, counts)  # among the mates of its probe
        if mates == "best":
            self.ranks = 1 + above[starts]
            precision = place_M / (place_M + above)
            self.average_precision: NDArray[np.float64] | None = np.add.reduceat(precision, starts) / counts
            self.classes = class_P[probes]
        else:
            self.ranks, self.average_precision, self.classes = 1 + above, None, class_P[probe_M]
        _, self.unit = np.unique(self.classes, return_inverse=True)
        self.num_classes = int(self.unit.max()) + 1

    def metrics(self, ranks: Sequence[int], weights: NDArray[np.float64] | None = None) -> Mapping[str, float]:
        """Return rank-k for each k, and the mean average precision `map` if a probe's best mate counts.

        Args:
            ranks: values of k.
            weights: weights of the probes' classes, (num_classes,).
        """
        w = np.ones(len(self.ranks)) if weights is None else weights[self.unit]
        values = {f"rank{k}": float(w @ (self.ranks <= k) / w.sum()) for k in ranks}
        if self.average_precision is not None:
            values["map"] = float(w @ self.average_precision / w.sum())
        return values

    def cmc(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the cumulative match characteristic: ranks up to `size`, and the share of mates found up to each."""
        points = np.unique(np.geomspace(1, max(size, 2), CMC_POINTS).astype(np.int64))
        return points, np.searchsorted(np.sort(self.ranks), points, side="right") / len(self.ranks)
