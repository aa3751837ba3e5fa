"""Class centers: the rows of this process's classes and what a row optimizer remembers about each.

Rows are plain tensors, neither parameters nor buffers: DDP would broadcast rank 0's over the other
shards and average their gradients, and clipping would count them.
"""

import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..core.row_state import RowState
from ..core.workspace import Workspace
from ..group.collectives import portable, rank_and_size, restored
from ..group.sharding import Shard
from . import rounding, stores
from .initial import initial_rows

Index = slice | Tensor  # rows of the shard: a contiguous stretch, or sorted int64 ids
INIT_ROWS = 1024  # drawn at a time


class ClassCenters(nn.Module):
    """Rows (classes of this shard, width) with per-row state, saved and moved with the module.

    Args:
        num_classes: C, over all processes.
        embedding_size: columns drawn from N(0, 0.01), keyed by (seed, class), so that neither the number
            of processes nor the store changes an initial row.
        bias: one more column, zero at first.
        dtype: in which rows are stored: float32, bfloat16, or float64 to check numerics. Arithmetic on
            bfloat16 rows is in float32.
        rounding: of what is written in bfloat16: "stochastic" or "nearest".
        store, store_dir: see `heads.rows.stores`.
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
        rounding: str = "stochastic",
        store: str = "device",
        store_dir: str | os.PathLike[str] | None = None,
    ):
        super().__init__()
        if dtype not in (torch.float32, torch.bfloat16, torch.float64):
            raise ValueError(f"dtype={dtype}: rows are float32 or bfloat16, or float64 to check numerics")
        if rounding not in ("stochastic", "nearest"):
            raise ValueError(f"rounding={rounding!r}: must be 'stochastic' or 'nearest'")
        self.process_group = process_group
        self.shard = Shard(num_classes, *rank_and_size(process_group))
        self.embedding_size, self.width, self.seed = embedding_size, embedding_size + bias, seed
        self.rounding = rounding
        self.workspace = Workspace()
        self.store = stores.make(store, store_dir, self.shard, {"seed": seed})
        self.state: dict[str, Tensor] = {}
        self.version = 0  # counts the changes of rows as a whole: steps and loads
        self.claims = 0  # counts the optimizers; row state is of the last one
        self._loaded: dict[str, Tensor] = {}  # state that came from a checkpoint before its optimizer was made
        with torch.inference_mode(False):  # rows made there could never be trained
            # An empty tensor where arithmetic is done and in its dtype, for others to be made like it.
            self.like = torch.empty(0, dtype=torch.promote_types(dtype, torch.float32), device=device)
            self.rows = self.store.zeros("rows", (self.shard.size, self.width), dtype, self.like.device)
            if not self.store.lazy:
                self._draw_blank(all_are=True)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold rows and row state, and find the default process group where they are loaded."""
        return {**self.__dict__, "process_group": portable(self.process_group), "workspace": Workspace()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.process_group = restored(state["process_group"])
        rank, world_size = rank_and_size(self.process_group)
        if (rank, world_size) != (self.shard.rank, self.shard.world_size):
            raise ValueError(
                f"this copy of a head holds the classes of process {self.shard.rank} of {self.shard.world_size}, and "
                f"here is process {rank} of {world_size}; use state_dict() or full_state_dict() to move a head"
            )

    @property
    def stamp(self) -> tuple[int, int]:
        """Identifies the rows as they are now. The second number is torch's own count of changes in place, which also
        sees a user who writes into `rows`; the first is the same on all processes."""
        return self.version, self.rows._version

    @property
    def in_place(self) -> bool:
        """Whether a stretch of rows can be used and changed where it lies."""
        return self.rows.dtype == self.like.dtype and self.rows.device == self.like.device and not self.store.lazy

    def read(self, index: Index, name: str = "rows", out: Tensor | None = None) -> Tensor:
        """Rows or row state at `index`, in the dtype and on the device of arithmetic; may be a view for a slice."""
        table = self._table(name)
        if isinstance(index, slice):
            values = table[index]
        elif out is not None and table.dtype == out.dtype and table.device == out.device:
            values = torch.index_select(table, 0, index, out=out)
        else:
            values = table.index_select(0, index.to(table.device))
        if out is None:
            values = values.to(self.like)
        elif values is not out:
            values = out.copy_(values)
        return self._drawn_where_blank(index, values) if name == "rows" and self.store.lazy else values

    def borrow(self, index: Index, name: str, count: int) -> Tensor:
        """`count` rows of state as `read` gives them, in memory that the next call takes again."""
        if isinstance(index, slice):
            return self.read(index, name)
        width = self._table(name).shape[1]
        return self.read(index, name, out=self.workspace.borrow(f"state {name}", (count, width), self.like))

    def write(self, index: Index, name: str, values: Tensor, step: int = 0) -> None:
        """Put back what `read` gave, changed or not. `step` keys the rounding to bfloat16."""
        table = self._table(name)
        if table.dtype == torch.bfloat16 and self.rounding == "stochastic":
            key = (self.seed, step, zlib.crc32(name.encode()))
            values = rounding.stochastic(values, self._classes(index), *key)
        if not isinstance(index, slice):
            table.index_copy_(0, index.to(table.device), values.to(table))
        elif table[index].data_ptr() != values.data_ptr():
            table[index] = values

    def claim(self, state: Mapping[str, RowState], *, keep: bool = False) -> None:
        """Make room for the state of a row optimizer. State starts at zero or as loaded.

        Args:
            keep: state of these names that is there already stays.

        Raises:
            ValueError: a name that the rows themselves have; loaded state that this optimizer does not keep.
        """
        self.claims += not keep
        if "rows" in state:
            raise ValueError("a row optimizer must not name its state 'rows', which names the class centers themselves")
        unclaimed = sorted(set(self._loaded) - set(state))
        if unclaimed:
            raise ValueError(
                f"the loaded centers carry the row state {unclaimed}, but this row optimizer keeps {sorted(state)}; "
                "use the row optimizer they were saved with"
            )
        for name, loaded in self._loaded.items():
            shape = [self.shard.size, state[name].width]
            if list(loaded.shape) != shape:
                raise ValueError(f"loaded row state {name!r}: {list(loaded.shape)}, not {shape}")
        with torch.inference_mode(False):
            self.state = {
                name: self.state[name] if keep and name in self.state else self._blank_state(name, each)
                for name, each in state.items()
            }
        for name, loaded in self._loaded.items():
            self.state[name].copy_(loaded)
        self._loaded = {}

    def _blank_state(self, name: str, state: RowState) -> Tensor:
        shape, dtype = (self.shard.size, state.width), state.dtype or self.like.dtype
        return self.store.zeros(name, shape, dtype, self.like.device)

    @property
    def memory_bytes(self) -> int:
        """Bytes of rows and row state on this process, wherever they live."""
        return sum(tensor.nbytes for _, tensor in self._saved())

    def extra_repr(self) -> str:
        return f"{self.shard}, width={self.rows.shape[1]}, dtype={self.rows.dtype}, device={self.rows.device}"

    def _table(self, name: str) -> Tensor:
        return self.rows if name == "rows" else self.state[name]

    def _classes(self, index: Index) -> Tensor:
        """Global class ids (k,) of rows of this shard, where arithmetic is done."""
        if isinstance(index, slice):
            index = torch.arange(index.start, index.stop, device=self.like.device)
        return index.to(self.like.device) + self.shard.start

    def _draw_blank(self, *, all_are: bool = False) -> None:
        """Rows of zeros were never written; they become the initial rows of their classes."""
        for a in range(0, self.shard.size, INIT_ROWS):
            index = slice(a, min(a + INIT_ROWS, self.shard.size))
            rows = self.rows[index]
            if all_are:
                rows[:, : self.embedding_size] = self._drawn(self._classes(index))
            elif (blank := (rows == 0).all(dim=1)).any():
                rows[blank, : self.embedding_size] = self._drawn(self._classes(index)[blank]).to(rows)

    def _drawn(self, classes: Tensor) -> Tensor:
        return initial_rows(classes, self.embedding_size, self.seed).to(self.like)

    def _drawn_where_blank(self, index: Index, values: Tensor) -> Tensor:
        """Rows of zeros, which were never written, as the initial rows of their classes."""
        blank = (values == 0).all(dim=1)
        if not blank.any():
            return values
        if values.untyped_storage().data_ptr() == self.rows.untyped_storage().data_ptr():
            values = values.clone()  # reading changes no row
        initial = self._drawn(self._classes(index)[blank]).to(self.rows.dtype).to(self.like)
        values[blank, : self.embedding_size] = initial
        return values

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        yield "rows", self.rows
        yield from (self.state | self._loaded).items()

    def _apply(self, fn: Any, recurse: bool = True) -> "ClassCenters":
        super()._apply(fn, recurse)
        # Only the device follows: `.half()` on a model must not round its centers.
        device = fn(torch.empty(0, device=self.like.device)).device
        self.like = self.like.to(device)
        self.rows = self.store.follow(self.rows, device)
        self.state = {name: self.store.follow(table, device) for name, table in self.state.items()}
        self._loaded = {name: self.store.follow(table, device) for name, table in self._loaded.items()}
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
        if faults := self.faults(state_dict, prefix):
            error_msgs += faults
            return
        self.version += 1
        for name, value in found.items():
            local = self._local_part(value)
            if name == "rows" or name in self.state:
                self._table(name).copy_(local)
            else:
                self._loaded[name] = local.detach().to(self.rows.device, copy=True)
        if not self.store.lazy:
            self._draw_blank()  # a lazy store was saved with rows that it had not drawn yet

    def faults(self, state_dict: Mapping[str, Tensor], prefix: str) -> list[str]:
        """Return why rows and row state of a state dict do not fit; nothing where they do."""
        found = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        error_msgs = []
        for name, value in found.items():
            local = self._local_part(value)
            known = self.rows if name == "rows" else self.state.get(name)
            if (foreign := self._foreign_part(value)) is not None:
                error_msgs.append(
                    f"{prefix}{name}: the file holds only {foreign} of {list(value.shape)}, as torch.save wrote it on "
                    f"one process; this is process {self.shard.rank} of {self.shard.world_size}. Save with "
                    "torch.distributed.checkpoint, or torch.save(head.full_state_dict())"
                )
            elif len(local) != self.shard.size or (known is not None and local.shape != known.shape):
                expected = list(known.shape) if known is not None else f"{self.shard.size} rows"
                error_msgs.append(
                    f"{prefix}{name}: got {list(value.shape)}, this process holds {expected} "
                    f"of {self.shard.num_classes} classes"
                )
        unclaimed = sorted(set(found) - {"rows", *self.state})
        if self.claims and unclaimed:
            error_msgs.append(f"{prefix}: row state {unclaimed}, but the row optimizer keeps {sorted(self.state)}")
        return error_msgs

    def _foreign_part(self, value: Any) -> str | None:
        """Describe the part of a DTensor that another process held when it was pickled; None where it is this one's.

        Such a part may have the right shape and would pass for the rows of this process.
        """
        if not hasattr(value, "to_local"):
            return None
        there = Shard(len(value), value.device_mesh.get_coordinate()[0], value.device_mesh.size())
        if (there.start, there.stop) == (self.shard.start, self.shard.stop) or len(value) != self.shard.num_classes:
            return None
        return f"rows {there.start} to {there.stop - 1}"

    def _local_part(self, value: Tensor) -> Tensor:
        if hasattr(value, "to_local"):
            value = value.to_local()
        if len(value) == self.shard.num_classes:
            return value[self.shard.start : self.shard.stop]
        return value
