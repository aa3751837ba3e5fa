"""Writing of checkpoints with torch.distributed.checkpoint, by all processes together.

Lightning's own file would hold the rows of the first process only. Here the head's rows and row state are separate
tensors in blocks, which every process writes for itself and reads as needed. A checkpoint therefore loads on any number
of processes, and neither saving nor loading needs much additional memory. Everything else is JSON with separate tensors
(`state.py`): reading a checkpoint runs no code from it. `stored.py` reads checkpoints.
"""

from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor

from ..launching.processes import Processes
from .attempts import CheckpointError, attempt_on_all, no_group_warning
from .blocks import BlockSavePlanner
from .files import Writer
from .manifest import InitialRows
from .state import pack
from .storage import CheckpointStore

SHARED = "lightning"  # prefix of the state that all processes have in common


def write(
    shared: Any,
    local: Any,
    rows: dict[str, Tensor],
    store: CheckpointStore,
    name: str,
    processes: Processes,
    initial: InitialRows | None = None,
) -> None:
    """Write a complete checkpoint. All processes must call this.

    Args:
        shared: state that is the same on all processes; that of process 0 is written.
        local: state of this process alone.
        rows: tensors of the classes of all processes, as `Head.sharded_state` returns them.
        initial: what rows that were never written are drawn from; None for a head that stores none.

    Raises:
        CheckpointError: on all processes; earlier checkpoints remain.
    """
    state, failure = rows, None
    try:
        state = {**rows, **pack(local, local_prefix(processes))}
        if processes.is_rank_zero:
            state |= pack(shared, SHARED)
    except ValueError as error:
        failure = str(error)
    if failures := [message for message in processes.gather(failure) if message]:
        raise CheckpointError(f"checkpoint.dir={store}: {name} could not be written ({failures[0]})")
    write_tensors(state, store, name, processes, initial)


def write_tensors(
    tensors: dict[str, Tensor],
    store: CheckpointStore,
    name: str,
    processes: Processes,
    initial: InitialRows | None = None,
) -> None:
    """Write a checkpoint of tensors. Each process writes its own, and its part of those that all processes share."""

    def attempt() -> None:
        processes.rank_zero_call(lambda: store.begin(name))
        with no_group_warning():
            dcp.save(
                tensors,
                storage_writer=Writer(store, name, processes.rank, initial),
                planner=BlockSavePlanner(),
                process_group=processes.control,
                no_dist=processes.world_size == 1,
            )
        processes.rank_zero_call(lambda: store.commit(name))
        processes.rank_zero_call(lambda: store.set_alias("latest", name))

    try:
        attempt_on_all(attempt, f"checkpoint.dir={store}: {name} could not be written", store)
    except CheckpointError:
        processes.rank_zero_call(lambda: store.abandon(name))  # on a full disk, logs need the space
        raise


def local_prefix(processes: Processes) -> str:
    """Return the prefix of the state of this process alone."""
    return f"process-{processes.rank}-of-{processes.world_size}"
