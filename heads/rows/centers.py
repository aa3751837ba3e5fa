"""Class centers: the rows of this process's classes, and the state that a row optimizer keeps for each.

A class has one row, or a block of adjacent rows. The tables of rows and of row state have one line a class, so that
sharding, selections and checkpoints are about classes; `read` and `write` are about their rows.

Rows are plain tensors, neither parameters nor buffers: DDP would overwrite the other shards with rank 0's and average
their gradients, and gradient clipping would include them.
"""

import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..core.row_state import RowState
from . import rounding, stores
from .class_rows import ClassRows, RowIndex
from .initial import initial_blocks
from .layout import Layout, layout_fault
from .sharded_tensor import foreign_part, global_view, local_part

INIT_ROWS = 1024  # drawn at a time
LAYOUT = "layout"  # key of a state dict, beside the names of tables


class ClassCenters(ClassRows):
    """Stored rows (classes of this shard, rows_per_class x width) with per-row state, saved and moved with the module.

    Args:
        num_classes: C, over all processes.
        embedding_size: columns drawn from N(0, 0.01). A draw depends on seed and class only, so neither the number
            of processes nor the store changes an initial row.
        rows_per_class: rows of a class.
        bias: initial value of one more column of each row; None for no such column.
        seed: seed of the initial rows, and of the layout.
        scattered: whether the rows are stored in a pseudo-random order of the classes, `Layout`, so that adjacent rows
            are those of unrelated classes. The initial row of a class is the same in any order.
        process_group: the processes that share the classes; None for one process.
        device: device on which rows are updated.
        dtype: dtype of the stored rows: float32, bfloat16, or float64 to check numerics. Arithmetic on bfloat16 rows
            is in float32.
        rounding: "stochastic" or "nearest", for values written in bfloat16.
        store: "device", "host" or "disk"; see `heads.rows.stores`.
        store_dir: folder of the files of store="disk".

    Raises:
        ValueError: an option out of range, more processes than classes allow, or files that do not fit.
    """

    rows: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        rows_per_class: int = 1,
        bias: float | None = None,
        seed: int = 0,
        scattered: bool = False,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        rounding: str = "stochastic",
        store: str = "device",
        store_dir: str | os.PathLike[str] | None = None,
    ):
        if dtype not in (torch.float32, torch.bfloat16, torch.float64):
            raise ValueError(f"dtype={dtype} must be float32 or bfloat16, or float64 to check numerics")
        if rounding not in ("stochastic", "nearest"):
            raise ValueError(f"rounding={rounding!r} must be 'stochastic' or 'nearest'")
        super().__init__(
            num_classes,
            embedding_size,
            rows_per_class=rows_per_class,
            bias=bias,
            seed=seed,
            layout=Layout(num_classes, seed) if scattered else None,
            process_group=process_group,
            device=device,
            dtype=torch.promote_types(dtype, torch.float32),
        )
        self.rounding = rounding
        # Those of a plain order of single rows are left out, as in files of earlier versions.
        facts: dict[str, Any] = {"seed": seed} | ({"rows_per_class": rows_per_class} if rows_per_class > 1 else {})
        facts |= {"scattered": True} if scattered else {}
        self.store = stores.make_store(store, store_dir, self.shard, facts)
        self._loaded: dict[str, Tensor] = {}  # state loaded before its optimizer exists
        with torch.inference_mode(False):  # tensors created in inference mode cannot be trained
            self.rows = self._allocate("rows", self.width, dtype)
            if not self.store.lazy:
                self._draw_blank(everywhere=True)

    @property
    def stamp(self) -> tuple[int, int]:
        """Version of the rows: steps and loads, the same on all processes, and torch's count of in-place changes.

        The second number also detects a user's writes into `rows`.
        """
        return self.version, self.rows._version

    @property
    def in_place(self) -> bool:
        return self.rows.dtype == self.like.dtype and self.rows.device == self.like.device and not self.store.lazy

    def read(self, index: RowIndex, name: str = "rows", out: Tensor | None = None) -> Tensor:
        table = self._table(name)
        if out is not None:
            out = out.view(-1, table.shape[1])
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
        if name == "rows" and self.store.lazy:
            values = self._with_initial_rows(index, values)
        return values.view(-1, table.shape[1] // self.rows_per_class)

    def write(self, index: RowIndex, name: str, values: Tensor, step: int = 0) -> None:
        table = self._table(name)
        values = values.view(-1, table.shape[1])
        if table.dtype == torch.bfloat16 and self.rounding == "stochastic":
            key = (self.seed, step, zlib.crc32(name.encode()))
            values = rounding.stochastic(values, self._slots(index), *key)
        if not isinstance(index, slice):
            table.index_copy_(0, index.to(table.device), values.to(table))
        elif table[index].data_ptr() != values.data_ptr():
            table[index] = values

    def claim(self, state: Mapping[str, RowState], *, keep: bool = False) -> None:
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
            shape = [self.shard.size, self.rows_per_class * state[name].width]
            if list(loaded.shape) != shape:
                raise ValueError(f"loaded row state {name!r} has shape {list(loaded.shape)}, but must have {shape}")
        with torch.inference_mode(False):
            self.state = {
                name: self.state[name] if keep and name in self.state else self._allocate_state(name, row_state)
                for name, row_state in state.items()
            }
        for name, loaded in self._loaded.items():
            self.state[name].copy_(loaded)
        self._loaded = {}

    def _allocate_state(self, name: str, state: RowState) -> Tensor:
        return self._allocate(name, state.width, state.dtype or self.like.dtype)

    def _allocate(self, name: str, width: int, dtype: torch.dtype) -> Tensor:
        return self.store.allocate(name, (self.shard.size, self.rows_per_class * width), dtype, self.like.device)

    @property
    def memory_bytes(self) -> int:
        return sum(tensor.nbytes for _, tensor in self._saved())

    def extra_repr(self) -> str:
        return f"{self.shard}, width={self.rows.shape[1]}, dtype={self.rows.dtype}, device={self.rows.device}"

    def _table(self, name: str) -> Tensor:
        return self.rows if name == "rows" else self.state[name]

    def _draw_blank(self, *, everywhere: bool = False) -> None:
        """Replace rows of zeros, which were never written, with the initial rows of their classes."""
        for a in range(0, self.shard.size, INIT_ROWS):
            index = slice(a, min(a + INIT_ROWS, self.shard.size))
            rows = self.rows[index]
            if everywhere:
                rows[:] = self._initial(self.classes(index))
            elif (blank := (rows == 0).all(dim=1)).any():
                rows[blank] = self._initial(self.classes(index)[blank]).to(rows)

    def _initial(self, classes: Tensor) -> Tensor:
        """Return the initial rows of classes (k, rows_per_class x width)."""
        bias = self.bias if self.width > self.embedding_size else None
        size, rows = self.embedding_size, self.rows_per_class
        return initial_blocks(classes, size, self.seed, rows_per_class=rows, bias=bias, like=self.like)

    def _with_initial_rows(self, index: RowIndex, values: Tensor) -> Tensor:
        """Return `values` with the initial rows of their classes in place of rows of zeros."""
        blank = (values == 0).all(dim=1)
        if not blank.any():
            return values
        if values.untyped_storage().data_ptr() == self.rows.untyped_storage().data_ptr():
            values = values.clone()  # a read must not change rows
        initial = self._initial(self.classes(index)[blank]).to(self.rows.dtype).to(self.like)
        values[blank] = initial
        return values

    @staticmethod
    def _tables(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Return the entries of a state dict that are rows and row state, by name."""
        tables = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        tables.pop(LAYOUT, None)
        return tables

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        yield "rows", self.rows
        yield from (self.state | self._loaded).items()

    def _apply(self, fn: Any, recurse: bool = True) -> "ClassCenters":
        super()._apply(fn, recurse)
        device = self.like.device
        self.rows = self.store.move(self.rows, device)
        self.state = {name: self.store.move(table, device) for name, table in self.state.items()}
        self._loaded = {name: self.store.move(table, device) for name, table in self._loaded.items()}
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self._saved():
            destination[prefix + name] = global_view(tensor, self.shard, self.process_group)
        if self.layout is not None:
            destination[prefix + LAYOUT] = self.layout.state_dict()

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
        """Load DTensors of the same sharding, and plain tensors of all classes or of this shard."""
        tables = self._tables(state_dict, prefix)
        missing_keys += [prefix + name for name in ("rows", *self.state) if name not in tables]
        if faults := self.faults(state_dict, prefix):
            error_msgs += faults
            return
        self.version += 1
        for name, value in tables.items():
            local = local_part(value, self.shard)
            if name == "rows" or name in self.state:
                self._table(name).copy_(local)
            else:
                self._loaded[name] = local.detach().to(self.rows.device, copy=True)
        if not self.store.lazy:
            self._draw_blank()  # a checkpoint of a lazy store may hold rows of zeros

    def faults(self, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
        if f"{prefix}_extra_state" in state_dict:
            return [f"{prefix}rows: this head stores its rows, and the state dict holds the formula of computed ones"]
        tables, saved = self._tables(state_dict, prefix), state_dict.get(prefix + LAYOUT)
        if tables and (fault := layout_fault(saved, self.layout)):
            return [fault]
        error_msgs = []
        for name, value in tables.items():
            local = local_part(value, self.shard)
            known = self.rows if name == "rows" else self.state.get(name)
            if (foreign_rows := foreign_part(value, self.shard)) is not None:
                error_msgs.append(
                    f"{prefix}{name}: the file holds only {foreign_rows} of {list(value.shape)}, as torch.save wrote "
                    f"it on one process; this is process {self.shard.rank} of {self.shard.world_size}. Save with "
                    "torch.distributed.checkpoint, or torch.save(head.full_state_dict())"
                )
            elif len(local) != self.shard.size or (known is not None and local.shape != known.shape):
                expected = list(known.shape) if known is not None else f"{self.shard.size} rows"
                error_msgs.append(
                    f"{prefix}{name}: got {list(value.shape)}, but this process holds {expected} "
                    f"of {self.shard.num_classes} classes"
                )
        unclaimed = sorted(set(tables) - {"rows", *self.state})
        if self.claims and unclaimed:
            error_msgs.append(f"{prefix}: got row state {unclaimed}, but the row optimizer keeps {sorted(self.state)}")
        return error_msgs
