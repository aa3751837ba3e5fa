"""Rows of this process's classes, as losses, optimizers and checkpoints use them: stored or computed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..core.row_state import RowState
from ..core.workspace import Workspace
from ..group.collectives import portable, rank_and_size, restored
from ..group.sharding import Shard
from .layout import Layout

RowIndex = slice | Tensor  # classes of the shard, by slot: a contiguous range, or sorted int64 numbers


class ClassRows(nn.Module, ABC):
    """Rows of the classes of this shard: one row for each class, or a block of adjacent ones.

    Args:
        num_classes: C, over all processes.
        embedding_size: columns that are compared with embeddings.
        rows_per_class: rows of a class.
        bias: initial value of one more column of each row; None for no such column.
        seed: seed of the rows.
        layout: the order of the rows; None for that of the class ids.
        process_group: the processes that share the classes; None for one process.
        device: device of arithmetic.
        dtype: dtype of arithmetic.

    Attributes:
        learned: whether row optimizers change the rows. Others have no gradient.
        like: an empty tensor with the device and dtype of arithmetic.
        state: name -> state that a row optimizer keeps for each row.
        version: counts steps and loads.
        claims: counts optimizers; the last one owns the row state.

    Raises:
        ValueError: more processes than classes allow.
    """

    learned: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        rows_per_class: int = 1,
        bias: float | None,
        seed: int,
        layout: Layout | None = None,
        process_group: ProcessGroup | None,
        device: torch.device | str | None,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.process_group = process_group
        self.shard = Shard(num_classes, *rank_and_size(process_group))
        self.embedding_size, self.width, self.seed = embedding_size, embedding_size + (bias is not None), seed
        self.rows_per_class, self.layout = rows_per_class, layout
        self.bias = 0.0 if bias is None else bias
        self.workspace = Workspace()
        self.state: dict[str, Tensor] = {}
        self.version = self.claims = 0
        with torch.inference_mode(False):  # tensors created in inference mode cannot be trained
            self.like = torch.empty(0, dtype=dtype, device=device)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or pickle: rows and row state, and a reference to the default process group."""
        return {**self.__dict__, "process_group": portable(self.process_group), "workspace": Workspace()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.process_group = restored(state["process_group"])
        rank, world_size = rank_and_size(self.process_group)
        if (rank, world_size) != (self.shard.rank, self.shard.world_size):
            raise ValueError(
                f"this copy of a head holds the classes of process {self.shard.rank} of {self.shard.world_size} and "
                f"cannot be loaded on process {rank} of {world_size}; use state_dict() or full_state_dict()"
            )

    @property
    def stamp(self) -> tuple[int, int]:
        """Version of the rows: steps and loads, the same on all processes, and changes that a user made in place."""
        return self.version, 0

    @property
    def in_place(self) -> bool:
        """Return whether a range of rows can be used and changed without a copy."""
        return False

    @abstractmethod
    def read(self, index: RowIndex, name: str = "rows", out: Tensor | None = None) -> Tensor:
        """Return rows or row state (k x rows_per_class, width) in the dtype and on the device of arithmetic.

        Args:
            index: k classes of the shard.
            name: "rows" or the name of row state.
            out: tensor that receives the values. Without it, the result of a slice may be a view.
        """

    @abstractmethod
    def write(self, index: RowIndex, name: str, values: Tensor, step: int = 0) -> None:
        """Store values as `read` returns them; `step` is a key of the rounding to bfloat16."""

    def borrow(self, index: RowIndex, name: str, count: int) -> Tensor:
        """Return the state of `count` classes as `read` does, in memory that the next call reuses."""
        if isinstance(index, slice):
            return self.read(index, name)
        shape = (count, self.state[name].shape[1])
        return self.read(index, name, out=self.workspace.borrow(f"state {name}", shape, self.like))

    @abstractmethod
    def claim(self, state: Mapping[str, RowState], *, keep: bool = False) -> None:
        """Allocate the state of a row optimizer, which starts at zero or as loaded.

        Args:
            state: name -> state per row.
            keep: whether existing state of these names stays.

        Raises:
            ValueError: state named "rows", or loaded state that this optimizer does not keep.
        """

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes of rows and row state of this process, in any store."""

    @abstractmethod
    def faults(self, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
        """Return why rows and row state of a state dict do not fit; an empty list if they fit."""

    def check_layout(self, draws_blocks: bool) -> None:
        """Raise a ValueError if a head draws blocks of these rows, and they are in the order of the class ids."""
        if draws_blocks and self.layout is None:
            raise ValueError(
                "sample_block above 1 needs rows in the order of a layout, and centers=... are in the order of the "
                "class ids; pass the centers of a head that has sample_block above 1 too, or set sample_block=1"
            )

    def check_shared(self, num_classes: int, embedding_size: int, rows_per_class: int, has_bias: bool) -> None:
        """Raise a ValueError unless these are rows of so many classes and columns, for a head that is to use them."""
        given = (self.shard.num_classes, self.embedding_size, self.rows_per_class, self.width > self.embedding_size)
        if given != (num_classes, embedding_size, rows_per_class, has_bias):
            raise ValueError(
                f"centers=({self.extra_repr()}) must hold rows of num_classes={num_classes} and "
                f"embedding_size={embedding_size}, {rows_per_class} for each class, "
                f"{'with' if has_bias else 'without'} a bias; pass the centers of a head with the same options"
            )

    def extra_repr(self) -> str:
        return f"{self.shard}, width={self.width}"

    def slots(self, classes: Tensor) -> Tensor:
        """Return where the rows of class ids are stored among those of all processes; -1 stays."""
        return classes if self.layout is None else self.layout.slots(classes)

    def local(self, classes: Tensor) -> Tensor:
        """Return the rows of this shard (n,) for class ids (n,); -1 if another process owns the class."""
        return self.shard.local(self.slots(classes))

    def classes(self, index: RowIndex) -> Tensor:
        """Return the class ids (k,) of rows of this shard, on the device of arithmetic."""
        return self.classes_of(self._slots(index))

    def classes_of(self, slots: Tensor) -> Tensor:
        """Return the class ids of slots."""
        return slots if self.layout is None else self.layout.classes(slots)

    def _slots(self, index: RowIndex) -> Tensor:
        """Return the numbers (k,) among the rows of all processes, on the device of arithmetic."""
        if isinstance(index, slice):
            index = torch.arange(index.start, index.stop, device=self.like.device)
        return index.to(self.like.device) + self.shard.start

    def _apply(self, fn: Any, recurse: bool = True) -> "ClassRows":
        super()._apply(fn, recurse)
        # Only the device changes: `.half()` on a model must not round its rows.
        self.like = self.like.to(fn(torch.empty(0, device=self.like.device)).device)
        return self
