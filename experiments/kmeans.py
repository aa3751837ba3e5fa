"""Spherical k-means: clusters of unit vectors by cosine, for arrays that are larger than memory.

Source: Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", Machine Learning 2001.
Legend: N records, C clusters, D columns; n records of a block, M records that the iterations use, k nearest centers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.counter_rng import permute
from heads.indexes import IVF
from heads.indexes.vectors import TensorVectors
from heads.objectives.rows import DenseRows
from heads.objectives.topk import streamed_topk

SEARCHES = ("exact", "ivf")
BLOCK = 2**13  # records read together
TILES = {"cpu": (1024, 512), "cuda": (BLOCK, 2**14)}  # records and centers compared together, which fit a CPU's cache
SHORTEST = 1e-6  # length of a sum of records below which they have no mean direction
Indices = NDArray[np.int64]


class Block(NamedTuple):
    """Some records with their clusters.

    Args:
        start: position of the first record.
        x_nD: the records.
        labels_nk: their nearest centers, nearest first.
        cos_n: cosine of each with its nearest center.
    """

    start: int
    x_nD: Tensor
    labels_nk: Indices
    cos_n: NDArray[np.float32]


@dataclass
class KMeans:
    """Clusters of the records 0 .. N - 1.

    An iteration assigns each record to the center of highest cosine, and moves each center to the mean direction of its
    records. A cluster without records begins again at the record of a large cluster that is farthest from its center.
    The result depends on the records, the seed and the options.

    Args:
        read: returns records by number, as unit vectors (n, D) on the device that computes.
        count: number of records, N.
        num_clusters: number of clusters, C, at most N.
        iterations: most iterations; fewer if no record changes its cluster.
        points: most records per cluster, drawn at random, that the iterations use.
        search: "exact" compares a record with all centers, "ivf" with those in some inverted lists (faiss).
        seed: draws the records that the iterations use, and those at which the centers begin.
        progress: returns an iterable of blocks that shows a progress bar with this label.
    """

    read: Callable[[Indices], Tensor]
    count: int
    num_clusters: int
    iterations: int = 20
    points: int = 256
    search: str = "exact"
    seed: int = 0
    progress: Callable[[Any, str], Iterable[Any]] = lambda blocks, label: blocks

    def fit(self) -> Tensor:
        """Return the centers (C, D), of unit length."""
        used = min(self.count, self.points * self.num_clusters)
        drawn_M = permute(np.arange(used), self.count, self.seed)
        centers_CD = self.read(drawn_M[: self.num_clusters])
        records_M = np.sort(drawn_M)  # a file is read in order
        labels_M = np.full(used, -1)
        for number in range(self.iterations):
            before_M = labels_M.copy()
            sums_CD, cos_M = np.zeros(centers_CD.shape, np.float32), np.empty(used, np.float32)
            for block in self.assigned(centers_CD, records_M, f"Iteration {number + 1} of {self.iterations}"):
                part = slice(block.start, block.start + len(block.cos_n))
                labels_M[part], cos_M[part] = block.labels_nk[:, 0], block.cos_n
                add_by_label(sums_CD, block.x_nD.cpu().numpy(), labels_M[part])
            if np.array_equal(before_M, labels_M):
                break
            sums = torch.from_numpy(sums_CD).to(centers_CD)
            has_mean = sums.norm(dim=1) > SHORTEST  # other centers stay where they are
            centers_CD[has_mean] = normalize(sums[has_mean])
            empty, far = replacements(labels_M, cos_M, self.num_clusters)
            if len(empty):
                centers_CD[torch.from_numpy(empty).to(centers_CD.device)] = self.read(records_M[far])
        return centers_CD

    def assigned(self, centers_CD: Tensor, records: Indices, label: str, k: int = 1) -> Iterator[Block]:
        """Yield the records in blocks, with the k nearest of the centers.

        Args:
            centers_CD: centers of unit length.
            records: numbers of the records.
            label: label of the progress bar.
            k: number of centers, at most C.
        """
        index = None
        if self.search == "ivf":
            index = IVF()
            index.build(TensorVectors(centers_CD), seed=self.seed)
        for start in self.progress(range(0, len(records), BLOCK), label):
            x_nD = self.read(records[start : start + BLOCK])
            labels_nk = nearest(x_nD, centers_CD, k) if index is None else index.query(x_nD, k)
            lacking = (labels_nk < 0).any(dim=1)  # the lists of these held fewer than k centers
            if lacking.any():
                labels_nk[lacking] = nearest(x_nD[lacking], centers_CD, k)
            cos_n = (x_nD * centers_CD[labels_nk[:, 0]]).sum(1)
            yield Block(start, x_nD, labels_nk.cpu().numpy(), cos_n.cpu().numpy())


def nearest(x_nD: Tensor, centers_CD: Tensor, k: int) -> Tensor:
    """Return the k centers of highest cosine, int64 (n, k), nearest first."""
    if k > 1:
        return streamed_topk(x_nD, DenseRows(centers_CD), k, normalize=False)[1]
    few, some = TILES[x_nD.device.type]
    return torch.cat([_nearest_one(part, centers_CD, some) for part in x_nD.split(few)])[:, None]


def _nearest_one(x_nD: Tensor, centers_CD: Tensor, step: int) -> Tensor:
    """Return the center of highest cosine, int64 (n,), the first of equal ones. Compares `step` centers at a time."""
    best_n = x_nD.new_full((len(x_nD),), -torch.inf)
    labels_n = torch.zeros(len(x_nD), dtype=torch.int64, device=x_nD.device)
    for start in range(0, len(centers_CD), step):
        cos_n, place_n = (x_nD @ centers_CD[start : start + step].T).max(dim=1)
        is_better = cos_n > best_n
        best_n = torch.where(is_better, cos_n, best_n)
        labels_n = torch.where(is_better, place_n + start, labels_n)
    return labels_n


def add_by_label(sums_CD: NDArray[np.float32], x_nD: NDArray[np.float32], labels_n: Indices) -> None:
    """Add each record to the sum of its cluster, always in the same order."""
    order = np.argsort(labels_n, kind="stable")
    labels, starts = np.unique(labels_n[order], return_index=True)
    sums_CD[labels] += np.add.reduceat(x_nD[order], starts, axis=0)


def replacements(labels_M: Indices, cos_M: NDArray[np.float32], num_clusters: int) -> tuple[Indices, Indices]:
    """Return the clusters without records, and for each the record at which it begins again.

    It is the record that is farthest from its center in one of the largest clusters, a different one for each. If fewer
    clusters have two records, some of the empty ones are left out.
    """
    counts_C = np.bincount(labels_M, minlength=num_clusters)
    empty = np.flatnonzero(counts_C == 0)
    donors = np.argsort(-counts_C, kind="stable")[: len(empty)]
    donors = donors[counts_C[donors] > 1]
    order = np.lexsort((cos_M, labels_M))
    return empty[: len(donors)], order[np.searchsorted(labels_M[order], donors)]
