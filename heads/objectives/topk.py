"""Exact nearest rows, streamed chunk by chunk."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..group.collectives import gather_columns, gather_sizes, rank_and_size
from ..group.sharding import Shard
from .rows import MIN_NORM, RowSequence
from .softmax import chunks


def streamed_topk(
    x_ND: Tensor, rows: RowSequence, k: int, *, normalize: bool, rows_per_class: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the k classes of highest cosine with each embedding.

    Args:
        x_ND: embeddings (N, D), of unit length for cosines.
        rows: the rows of K classes. A bias beside directions has no effect.
        k: number of classes.
        normalize: whether rows are scaled to unit length; without it the values are inner products.
        rows_per_class: of several rows of a class, the one with the highest cosine counts.

    Returns:
        Values, highest first, and int64 positions, both (N, min(k, K)).
    """
    return best_of(_scores(x_ND, rows, normalize, rows_per_class), k, x_ND)


def _scores(
    x_ND: Tensor, rows: RowSequence, normalize: bool, rows_per_class: int
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    for a, b in chunks(len(rows)):
        rows_kD = rows.slice(a, b)[:, : x_ND.shape[1]]  # without the bias of an objective
        scores_Nk = x_ND @ (torch.nn.functional.normalize(rows_kD, eps=MIN_NORM) if normalize else rows_kD).T
        if rows_per_class > 1:
            scores_Nk = scores_Nk.view(len(x_ND), b - a, rows_per_class).amax(2)
        yield (a, b), scores_Nk


def best_of(scores: Iterable[tuple[tuple[int, int], Tensor]], k: int, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each embedding.

    Args:
        scores: bounds (a, b) of a chunk of classes, and their scores (N, b - a).
        k: number of classes.
        x_ND: the embeddings.

    Returns:
        Values, highest first, and int64 classes, both (N, min(k, number of classes)).
    """
    values = x_ND.new_empty((len(x_ND), 0))
    positions = torch.empty((len(x_ND), 0), dtype=torch.int64, device=x_ND.device)
    for (a, b), scores_Nk in scores:
        values = torch.cat([values, scores_Nk], dim=1)
        chunk_positions = torch.arange(a, b, device=x_ND.device).expand(len(x_ND), -1)
        positions = torch.cat([positions, chunk_positions], dim=1)
        values, best = values.topk(min(k, values.shape[1]), dim=1)
        positions = positions.gather(1, best)
    return values, positions


def nearest_classes(
    x_ND: Tensor,
    rows: RowSequence,
    k: int,
    shard: Shard,
    sizes: list[int],
    group: ProcessGroup | None,
    *,
    normalize: bool,
    rows_per_class: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the k nearest classes of this process's embeddings, over the shards of all processes.

    Each process finds the nearest rows of its shard for the embeddings of all; the results are gathered.

    Args:
        x_ND: embeddings of all processes, in rank order.
        rows: all rows of this process's shard.
        k: at most the number of classes.
        sizes: number of embeddings of each process.
        normalize, rows_per_class: as in `streamed_topk`.

    Returns:
        Values, highest first, and class ids, both (n, k).
    """
    values, ids = streamed_topk(x_ND, rows, k, normalize=normalize, rows_per_class=rows_per_class)
    return best_of_processes(values, ids + shard.start, k, sizes, group)


def best_of_processes(
    values_NM: Tensor, classes_NM: Tensor, k: int, sizes: list[int], group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Return the k highest values of this process's embeddings among those that all processes found.

    Args:
        values_NM: the highest values of this process's classes, for the embeddings of all processes; M may differ.
        classes_NM: their classes.
        k: number of classes.
        sizes: number of embeddings of each process.
        group: the processes.

    Returns:
        Values, highest first, and classes, both (n, k).
    """
    rank, _ = rank_and_size(group)
    widths = gather_sizes(values_NM.shape[1], values_NM.device, group)
    values_NM, classes_NM = (gather_columns(part, widths, group) for part in (values_NM, classes_NM))
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    values_nk, best = values_NM[own].topk(k, dim=1)
    return values_nk, classes_NM[own].gather(1, best)
