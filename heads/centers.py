"""Class centers: the rows of this process's classes and what a row optimizer remembers about each.

Rows are plain tensors, neither parameters nor buffers: DDP would broadcast rank 0's over the other
shards and average their gradients, and clipping would count them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from . import keyed
from .collectives import rank_and_size
from .sharding import Shard

Index = slice | Tensor  # rows of the shard: a contiguous stretch, or sorted int64 ids
INIT_BLOCK = 1024
INIT_STD = 0.01


class ActiveRows:
    """The rows of one forward, by their positions among the active ones.

    Args:
        centers: where they come from.
        ids: which rows of the shard; None for all.
        keep: hold on to what the first pass read, so that backward and the optimizer's step need not
            gather rows from all over memory again. All rows are read in place and need no keeping.
    """

    def __init__(self, centers: "ClassCenters", ids: Tensor | None, *, keep: bool):
        self.centers, self.ids = centers, ids
        self.version = centers.version
        self.kept: dict[tuple[int, int], Tensor] | None = {} if keep and ids is not None else None

    def __len__(self) -> int:
        return self.centers.shard.size if self.ids is None else len(self.ids)

    @property
    def kept_bytes(self) -> int:
        return sum(rows.nbytes for rows in (self.kept or {}).values())

    def at(self, positions: Tensor) -> Tensor:
        return self.centers.read(positions if self.ids is None else self.ids[positions])

    def stretch(self, a: int, b: int) -> Tensor:
        """Rows a to b as they were in the forward pass, while kept; else as they are."""
        if self.kept is not None and (a, b) in self.kept:
            return self.kept[a, b]
        rows = self._read(a, b)
        if self.kept is not None and self.version == self.centers.version:
            self.kept[a, b] = rows
        return rows

    def take(self, a: int, b: int) -> Tensor:
        """Rows a to b as they are now, for the caller to change and write back."""
        if self.version != self.centers.version:
            return self._read(a, b)
        rows = self.stretch(a, b)
        if self.kept is not None:
            del self.kept[a, b]
        return rows

    def _read(self, a: int, b: int) -> Tensor:
        return self.centers.read(slice(a, b) if self.ids is None else self.ids[a:b])


class ClassCenters(nn.Module):
    """Rows (classes of this shard, width) with per-row state, saved and moved with the module.

    Args:
        num_classes: C, over all processes.
        embedding_size: columns drawn from N(0, 0.01), keyed by (seed, block of 1024 class ids), so that
            the number of processes changes no initial row.
        bias: one more column, zero at first.
        dtype: float32, or float64 to check numerics.
    """

    rows: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        bias: bool = False,
        seed: int = 0,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.process_group = process_group
        self.shard = Shard(num_classes, *rank_and_size(process_group))
        self.rows = torch.zeros((self.shard.size, embedding_size + bias), dtype=dtype)
        self.state: dict[str, Tensor] = {}
        self.version = 0  # counts the changes of rows as a whole: steps and loads
        self._loaded: dict[str, Tensor] = {}  # state that came from a checkpoint before its optimizer was made
        for ids, block in initial_blocks(self.shard, embedding_size, seed):
            self.rows[ids - self.shard.start, :embedding_size] = block.to(dtype)
        if device is not None:
            self.to(device)

    def read(self, index: Index, name: str = "rows") -> Tensor:
        """Rows or row state at `index`; a view for a slice, a copy for ids."""
        tensor = self._tensor(name)
        return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)

    def write(self, index: Index, values: Tensor, name: str = "rows") -> None:
        """Put back what `read` gave, changed or not."""
        tensor = self._tensor(name)
        if not isinstance(index, slice):
            tensor.index_copy_(0, index, values)
        elif tensor[index].data_ptr() != values.data_ptr():
            tensor[index] = values

    def claim(self, state: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for a row optimizer: name -> shape of one row's state. Starts at zero or as loaded."""
        unclaimed = sorted(set(self._loaded) - set(state))
        if unclaimed:
            raise ValueError(
                f"the loaded centers carry the row state {unclaimed}, but this row optimizer keeps {sorted(state)}; "
                "use the row optimizer they were saved with"
            )
        fresh = {name: self.rows.new_zeros((self.shard.size, *tail)) for name, tail in state.items()}
        for name, loaded in self._loaded.items():
            if loaded.shape != fresh[name].shape:
                raise ValueError(f"loaded row state {name!r}: {list(loaded.shape)}, not {list(fresh[name].shape)}")
            fresh[name].copy_(loaded)
        self.state, self._loaded = fresh, {}

    @property
    def memory_bytes(self) -> int:
        """Bytes of rows and row state on this process."""
        return sum(tensor.nbytes for _, tensor in self._saved())

    def extra_repr(self) -> str:
        return f"{self.shard}, width={self.rows.shape[1]}, dtype={self.rows.dtype}, device={self.rows.device}"

    def _tensor(self, name: str) -> Tensor:
        return self.rows if name == "rows" else self.state[name]

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        yield "rows", self.rows
        yield from (self.state | self._loaded).items()

    def _apply(self, fn: Any, recurse: bool = True) -> "ClassCenters":
        super()._apply(fn, recurse)
        # Only the device follows: `.half()` on a model must not round its centers.
        device = fn(torch.empty(0, device=self.rows.device)).device
        self.rows = self.rows.to(device)
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}
        self._loaded = {name: tensor.to(device) for name, tensor in self._loaded.items()}
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self._saved():
            destination[prefix + name] = self._global_view(tensor)

    def _global_view(self, local: Tensor) -> Tensor:
        """All processes' shards as one DTensor; the tensor itself on one process."""
        if self.process_group is None:
            return local
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor import Shard as ShardPlacement

        mesh = DeviceMesh.from_group(self.process_group, local.device.type)
        shape = torch.Size((self.shard.num_classes, *local.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, mesh, [ShardPlacement(0)], run_check=False, shape=shape, stride=stride)

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
        """Takes DTensors of any sharding that matches, and plain tensors of all classes or of this shard."""
        found = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        missing_keys += [prefix + name for name in ("rows", *self.state) if name not in found]
        arriving: dict[str, Tensor] = {}
        for name, value in found.items():
            local = self._local_part(value)
            known = self.rows if name == "rows" else self.state.get(name)
            if len(local) != self.shard.size or (known is not None and local.shape != known.shape):
                expected = list(known.shape) if known is not None else f"{self.shard.size} rows"
                error_msgs.append(
                    f"{prefix}{name}: got {list(value.shape)}, this process holds {expected} "
                    f"of {self.shard.num_classes} classes"
                )
            arriving[name] = local
        unclaimed = sorted(set(found) - {"rows", *self.state})
        if self.state and unclaimed:
            error_msgs.append(f"{prefix}: row state {unclaimed}, but the row optimizer keeps {sorted(self.state)}")
        if error_msgs:
            return
        self.version += 1
        for name, local in arriving.items():
            if name == "rows" or name in self.state:
                self._tensor(name).copy_(local)
            else:
                self._loaded[name] = local.detach().to(self.rows.device, copy=True)

    def _local_part(self, value: Tensor) -> Tensor:
        if hasattr(value, "to_local"):
            value = value.to_local()
        if len(value) == self.shard.num_classes:
            return value[self.shard.start : self.shard.stop]
        return value


def initial_blocks(shard: Shard, embedding_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(global ids (b,), initial rows (b, embedding_size)) of a shard, block by block."""
    for block in range(shard.start // INIT_BLOCK, math.ceil(shard.stop / INIT_BLOCK)):
        first = block * INIT_BLOCK
        values = torch.empty(INIT_BLOCK, embedding_size).normal_(
            std=INIT_STD, generator=keyed.generator("initialisation", seed, block)
        )
        ids = torch.arange(max(first, shard.start), min(first + INIT_BLOCK, shard.stop))
        yield ids, values[ids - first]
