"""The classes that take part in one forward pass, and their rows."""

import torch
from torch import Tensor

from ..objectives import softmax
from ..selection.selection import Selection
from .class_rows import ClassRows, RowIndex
from .overlay import Overlay


class ActiveRows:
    """The rows of the classes of one forward pass, addressed by the positions of these classes among the active ones.

    Args:
        centers: the class centers that hold them.
        selection: the K classes.
        keep: whether to keep the rows that the first pass reads, so that backward and the optimizer's step need not
            gather them again. Rows that can be read in place are never copied.

    Attributes:
        ids: int64 (K,), classes of the shard; None for all.
        overlay: values that stand in place of some rows, if all rows are active; None for none.
    """

    def __init__(self, centers: ClassRows, selection: Selection, *, keep: bool):
        self.centers, self.ids, self.size = centers, selection.ids, centers.rows_per_class
        # Blocks as large as chunks are ranges of rows, which can be used in place.
        self._block, self._in_blocks, self._starts = selection.block, selection.num_in_blocks, None
        if selection.starts is not None and self._block % softmax.CHUNK_ROWS == 0:
            self._starts = selection.starts.tolist()
        self.stamp = centers.stamp
        self.overlay: Overlay | None = None
        self.kept_LD: Tensor | None = None
        self.num_kept = 0  # classes are read in order; the rows of those before this one are kept
        in_ranges = self.ids is None or self._starts is not None
        if keep and not (in_ranges and centers.in_place):
            self.kept_LD = centers.workspace.acquire("rows", (len(self) * self.size, centers.width), centers.like)

    def __len__(self) -> int:
        return self.centers.shard.size if self.ids is None else len(self.ids)

    @property
    def kept_bytes(self) -> int:
        return 0 if self.kept_LD is None else self.kept_LD.nbytes

    def gather(self, positions: Tensor) -> Tensor:
        """Return copies of the rows of classes (n,) -> (n x rows_per_class, width)."""
        rows = self.centers.read(positions if self.ids is None else self.ids[positions])
        return rows if self.overlay is None else self.overlay.at(rows, positions)

    def parts(self) -> list[tuple[int, Tensor]]:
        """Return the first position and the sorted ids of each sorted part."""
        if self.ids is None:
            return [(0, torch.arange(len(self), device=self.centers.like.device))]
        first, second = self.ids[: self._in_blocks], self.ids[self._in_blocks :]
        return [(0, first), (self._in_blocks, second)] if len(first) else [(0, second)]

    def index(self, a: int, b: int) -> RowIndex:
        """Return the classes of the shard at the positions a to b."""
        if self.ids is None:
            return slice(a, b)
        if self._starts is not None and b <= self._in_blocks and a // self._block == (b - 1) // self._block:
            start = self._starts[a // self._block] + a % self._block
            return slice(start, start + b - a)
        return self.ids[a:b]

    def subset(self, positions: Tensor) -> "ActiveRows":
        """Return the rows of classes at these sorted positions as active rows of the same forward pass."""
        assert self.overlay is None
        ids = positions if self.ids is None else self.ids[positions]
        rows = ActiveRows(self.centers, Selection(ids), keep=False)
        rows.stamp = self.stamp
        return rows

    def slice(self, a: int, b: int) -> Tensor:
        """Return the rows of classes a to b, (l, width): views of rows in place or kept, else copies."""
        if self.kept_LD is None:
            return self._read(a, b)
        own = slice(a * self.size, b * self.size)
        if b > self.num_kept:
            assert a == self.num_kept
            self._read(a, b, out=self.kept_LD[own])
            self.num_kept = b
        return self.kept_LD[own]

    @property
    def changed(self) -> bool:
        """Return whether a step, a load or a write has changed the rows since the forward pass."""
        return self.stamp != self.centers.stamp

    def release(self) -> None:
        """Return the memory of kept rows to the workspace."""
        if self.kept_LD is not None:
            self.centers.workspace.release("rows", self.kept_LD)
            self.kept_LD, self.num_kept = None, 0

    def _read(self, a: int, b: int, out: Tensor | None = None) -> Tensor:
        rows = self.centers.read(self.index(a, b), out=out)
        return rows if self.overlay is None else self.overlay.over(rows, a, in_place=out is not None)
