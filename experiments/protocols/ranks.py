"""Ranks of the mates of probes, and the metrics of identification that follow from them."""

from collections.abc import Mapping, Sequence
from typing import Any

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
        if mates == "best":
            self.ranks, self.classes = 1 + above[starts], class_P[probes]
            self.retrieval: Retrieval | None = Retrieval(above, starts, counts)
        else:
            self.ranks, self.classes, self.retrieval = 1 + above, class_P[probe_M], None
        _, self.unit = np.unique(self.classes, return_inverse=True)
        self.num_classes = int(self.unit.max()) + 1

    def metrics(self, ranks: Sequence[int], weights: NDArray[np.float64] | None = None) -> Mapping[str, float]:
        """Return rank-k for each k, and the metrics of `Retrieval` if a probe's best mate counts.

        Args:
            ranks: values of k.
            weights: weights of the probes' classes, (num_classes,).
        """
        w = np.ones(len(self.ranks)) if weights is None else weights[self.unit]
        values = {f"rank{k}": float(w @ (self.ranks <= k) / w.sum()) for k in ranks}
        for name, of_probes in self.retrieval.of_probes(tuple(ranks)).items() if self.retrieval is not None else ():
            values[name] = float(w @ of_probes / w.sum())
        return values

    def cmc(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the cumulative match characteristic: ranks up to `size`, and the share of mates found up to each."""
        points = np.unique(np.geomspace(1, max(size, 2), CMC_POINTS).astype(np.int64))
        return points, np.searchsorted(np.sort(self.ranks), points, side="right") / len(self.ranks)


class Retrieval:
    """Metrics of each probe that depend on all of its mates.

    A probe has R mates, found at the positions p_1 < ... < p_R.

    Args:
        above_M: number of strangers before each mate, ascending for each probe.
        starts: first mate of each probe.
        counts: number of mates of each probe, R.
    """

    def __init__(self, above_M: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]):
        place_M = 1 + np.arange(len(above_M)) - np.repeat(starts, counts)  # among the mates of its probe
        self.position_M, self.starts, self.counts = place_M + above_M, starts, counts
        precision_M = place_M / self.position_M
        within_M = self.position_M <= np.repeat(counts, counts)
        self.common = {
            "map": self._sum(precision_M) / counts,
            "map_at_r": self._sum(np.where(within_M, precision_M, 0)) / counts,
            "r_precision": self._sum(within_M) / counts,
        }
        self.by_ranks: dict[tuple[int, ...], dict[str, NDArray[np.float64]]] = {}

    def of_probes(self, ranks: tuple[int, ...]) -> dict[str, NDArray[np.float64]]:
        """Return the metrics of each probe, by name.

        map: mean over the mates of j / p_j, the average precision.
        map_at_r: the same, where mates at positions above R count as 0 (Musgrave et al., ECCV 2020).
        r_precision: share of mates among the first R.
        precisionK: share of mates among the first K.
        recallK: share of the mates that are among the first K.
        """
        if ranks not in self.by_ranks:  # the bootstrap asks for them a thousand times
            found = {k: self._sum(self.position_M <= k) for k in ranks}
            values = {f"precision{k}": found[k] / k for k in ranks}
            self.by_ranks[ranks] = {**self.common, **values, **{f"recall{k}": found[k] / self.counts for k in ranks}}
        return self.by_ranks[ranks]

    def _sum(self, values_M: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum over the mates of each probe."""
        return np.add.reduceat(values_M.astype(np.float64), self.starts)
