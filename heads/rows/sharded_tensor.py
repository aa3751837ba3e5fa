"""Tables of all processes' rows in state dicts: DTensors when sharded, and the part that belongs to one process."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..group.sharding import Shard


def global_view(local: Tensor, shard: Shard, group: ProcessGroup | None) -> Tensor:
    """Return all processes' shards as one DTensor, or `local` itself on one process."""
    if group is None:
        return local
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as ShardPlacement

    mesh = DeviceMesh.from_group(group, local.device.type)
    shape = torch.Size((shard.num_classes, *local.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [ShardPlacement(0)], run_check=False, shape=shape, stride=stride)


def local_part(value: Tensor, shard: Shard) -> Tensor:
    """Return this process's rows of a DTensor, of a tensor of all classes, or of a tensor that holds only them."""
    if hasattr(value, "to_local"):
        value = value.to_local()
    if len(value) == shard.num_classes:
        return value[shard.start : shard.stop]
    return value


def foreign_part(value: Any, shard: Shard) -> str | None:
    """Describe the rows of a DTensor that another process held when it was pickled; None for this process's rows.

    Such a part may have the right shape and would pass for the rows of this process.
    """
    if not hasattr(value, "to_local"):
        return None
    saved = Shard(len(value), value.device_mesh.get_coordinate()[0], value.device_mesh.size())
    if (saved.start, saved.stop) == (shard.start, shard.stop) or len(value) != shard.num_classes:
        return None
    return f"rows {saved.start} to {saved.stop - 1}"
