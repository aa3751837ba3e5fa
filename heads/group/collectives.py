"""The collectives of a head, one function each. With `group=None` (one process) all of them are identities.

Gloo's all-gather refuses uneven sizes, so rows are padded to the largest size and cut afterwards.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def default_group() -> ProcessGroup | None:
    """Return the group of all processes, or None for a single process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def rank_and_size(group: ProcessGroup | None) -> tuple[int, int]:
    """Return the rank of this process in the group, and the number of processes."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def portable(group: ProcessGroup | None) -> str | None:
    """Return a reference to a process group for copies and pickles.

    Raises:
        ValueError: the group is not the default one, so that no other process could find it.
    """
    if group is None:
        return None
    if group is not default_group():
        raise ValueError(
            "a head with its own process_group cannot be copied or pickled; make another one with the same options and "
            "load this one's state_dict()"
        )
    return "default"


def restored(group: str | None) -> ProcessGroup | None:
    """Return the process group of this process for a reference from `portable`."""
    return None if group is None else default_group()


def gather_sizes(
    size: int, device: torch.device, group: ProcessGroup | None, fault: ValueError | None = None
) -> list[int]:
    """Return how many rows each process holds, in rank order.

    A process that cannot use its input passes the `fault` instead of raising it. All processes then raise together,
    so that no process waits in a collective for another one that has stopped.

    Raises:
        ValueError: the fault on the process that passed it; on the others an error that names this process.
    """
    return gather_shapes(size, 0, device, group, fault)[0]


def gather_shapes(
    size: int, width: int, device: torch.device, group: ProcessGroup | None, fault: ValueError | None = None
) -> tuple[list[int], int]:
    """Return how many rows each process holds, and the largest width of any process; see `gather_sizes`."""
    if group is None:
        if fault is not None:
            raise fault
        return [size], width
    shapes = [torch.empty(2, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shapes, torch.tensor([-1 if fault is not None else size, width], device=device), group=group)
    all_sizes, widths = torch.stack(shapes).T.tolist()
    if fault is not None:
        raise fault
    if min(all_sizes) < 0:
        raise ValueError(
            f"process {all_sizes.index(-1)} cannot use its input, so this step was refused on all processes; "
            f"see the message of process {all_sizes.index(-1)}"
        )
    return all_sizes, max(widths)


def gather_rows(rows: Tensor, sizes: list[int], group: ProcessGroup | None) -> Tensor:
    """Gather each process's rows (n, ...) in rank order to (sum of sizes, ...), the same on every process."""
    if group is None:
        return rows
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_columns(columns: Tensor, widths: list[int], group: ProcessGroup | None) -> Tensor:
    """Gather each process's columns (N, m) in rank order to (N, sum of widths), the same on every process."""
    return gather_rows(columns.T.contiguous(), widths, group).T


def sum_over_processes(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum a tensor over processes, in place."""
    if group is not None:
        dist.all_reduce(tensor, dist.ReduceOp.SUM, group=group)
    return tensor


def max_over_processes(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Take the elementwise maximum of a tensor over processes, in place."""
    if group is not None:
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor
