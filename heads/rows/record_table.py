"""One number for each training record, sharded over the processes by record as class centers are by class."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..group.collectives import portable, rank_and_size, restored, sum_over_processes
from ..group.sharding import Shard, largest_world_size
from .sharded_tensor import foreign_part, global_view, local_part

UNVISITED = -torch.inf


class RecordTable(nn.Module):
    """A number for each training record of this process's shard, -inf before the record's first visit.

    The numbers are a plain tensor, neither a parameter nor a buffer, since each process holds others.

    Args:
        num_records: training records, over all processes.
        process_group: the processes that share the records; None for one process.
        like: a tensor with the dtype and device of the numbers.

    Attributes:
        values: (records of the shard,), float32 unless numerics are checked in float64.

    Raises:
        ValueError: there are more processes than records allow.
    """

    values: Tensor

    def __init__(self, num_records: int, *, process_group: ProcessGroup | None, like: Tensor):
        super().__init__()
        self.process_group = process_group
        rank, world_size = rank_and_size(process_group)
        if (most := largest_world_size(num_records, world_size)) < world_size:
            raise ValueError(
                f"num_records={num_records} on {world_size} processes leaves a process without a record; the largest "
                f"number of processes that works is {most}"
            )
        self.shard = Shard(num_records, rank, world_size)
        with torch.inference_mode(False):
            self.values = like.new_full((self.shard.size,), UNVISITED)

    def read(self, records_N: Tensor) -> Tensor:
        """Return the numbers of records (N,) of any process, with one sum over the processes.

        Args:
            records_N: (N,) record numbers, the same on all processes.
        """
        local_N = self.shard.local(records_N)
        values_N = torch.where(local_N >= 0, self.values[local_N.clamp(min=0)], 0)
        return sum_over_processes(values_N, self.process_group)

    @torch.no_grad()
    def write(self, records_V: Tensor, values_V: Tensor) -> None:
        """Store the numbers of distinct records (V,), the same on all processes; each keeps those of its shard."""
        local_V = self.shard.local(records_V)
        here_V = local_V >= 0
        self.values[local_V[here_V]] = values_V[here_V].to(self.values)

    def faults(self, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
        """Return why the numbers of a state dict do not fit; an empty list if they fit or are missing."""
        name = f"{prefix}values"
        if name not in state_dict:
            return []
        if (foreign := foreign_part(state_dict[name], self.shard)) is not None:
            return [
                f"{name}: the file holds only {foreign} of {list(state_dict[name].shape)}, as torch.save wrote it on "
                "one process; save with torch.distributed.checkpoint, or torch.save(head.full_state_dict())"
            ]
        if local_part(state_dict[name], self.shard).shape != self.values.shape:
            return [
                f"{name}: got {list(state_dict[name].shape)}, but this head was made for num_records="
                f"{self.shard.num_classes}; load the state into a head for the same training records"
            ]
        return []

    def extra_repr(self) -> str:
        return f"num_records={self.shard.num_classes}, device={self.values.device}"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or pickle, with a reference to the default process group."""
        return {**self.__dict__, "process_group": portable(self.process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.process_group = restored(state["process_group"])

    def _apply(self, fn: Any, recurse: bool = True) -> "RecordTable":
        super()._apply(fn, recurse)
        # Only the device changes: `.half()` on a model must not round the numbers.
        self.values = self.values.to(fn(torch.empty(0, device=self.values.device)).device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}values"] = global_view(self.values, self.shard, self.process_group)

    def _load_from_state_dict(  # type: ignore[override]
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load a DTensor of the same sharding, or a plain tensor of all records or of this shard."""
        name = f"{prefix}values"
        if name not in state_dict:
            missing_keys.append(name)
        elif faults := self.faults(state_dict, prefix):
            error_msgs += faults
        else:
            self.values.copy_(local_part(state_dict[name], self.shard))
