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


def portable(group: ProcessGroup | None) -> str | None:
    """Return what stands for a process group in a copy or a pickle.

    Raises:
        ValueError: another group than the default one, which no other process could find.
    """
    if group is None:
        return None
    if group is not default_group():
        raise ValueError(
            "process_group: a head with a group of its own cannot be copied or pickled; make another with the same "
            "options and load this one's state_dict()"
        )
    return "default"


def restored(group: str | None) -> ProcessGroup | None:
    """Return the process group that `portable` stood for, as it is here."""
    return None if group is None else default_group()


def gather_sizes(
    size: int, device: torch.device, group: ProcessGroup | None, fault: ValueError | None = None
) -> list[int]:
    """Return how many rows each process holds, in rank order.

    A process that cannot use its input passes the `fault` instead of raising it. All processes then raise together,
    and none waits in a collective for one that never comes.

    Raises:
        ValueError: the fault on the process that passed it; elsewhere one that names this process.
    """
    if group is None:
        if fault is not None:
            raise fault
        return [size]
    sizes = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([-1 if fault is not None else size], device=device), group=group)
    found: list[int] = torch.cat(sizes).tolist()
    if fault is not None:
        raise fault
    if min(found) < 0:
        raise ValueError(
            f"process {found.index(-1)} cannot use its input, so this step was refused on all processes; "
            f"see the message of process {found.index(-1)}"
        )
    return found


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
