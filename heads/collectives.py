"""The collectives of a head, each one function. With `group=None` (one process) all are identities.

Gloo's all-gather refuses uneven sizes, so rows are padded to the longest and cut afterwards.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def default_group() -> ProcessGroup | None:
    """The group of all processes, or None where there is one process only."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def rank_and_size(group: ProcessGroup | None) -> tuple[int, int]:
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def gather_sizes(size: int, device: torch.device, group: ProcessGroup | None) -> list[int]:
    """How many rows each process holds, in rank order."""
    if group is None:
        return [size]
    sizes = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([size], device=device), group=group)
    return torch.cat(sizes).tolist()


def gather_rows(rows: Tensor, sizes: list[int], group: ProcessGroup | None) -> Tensor:
    """Each process's (n, ...) -> all rows (sum of sizes, ...) in rank order, the same on every process."""
    if group is None:
        return rows
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_columns(columns: Tensor, widths: list[int], group: ProcessGroup | None) -> Tensor:
    """Each process's (N, m) -> all columns (N, sum of widths) in rank order, the same on every process."""
    return gather_rows(columns.T.contiguous(), widths, group).T


def sum_over_processes(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """In place."""
    if group is not None:
        dist.all_reduce(tensor, dist.ReduceOp.SUM, group=group)
    return tensor


def max_over_processes(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """In place."""
    if group is not None:
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor
