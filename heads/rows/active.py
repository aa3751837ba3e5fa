"""The classes that take part in one forward pass, and their rows."""

from torch import Tensor

from .class_rows import ClassRows
from .overlay import Overlay


class ActiveRows:
    """The rows of the classes of one forward pass, addressed by the positions of these classes among the active ones.

    Args:
        centers: the class centers that hold them.
        ids: int64 (K,), sorted classes of the shard; None for all.
        keep: whether to keep the rows that the first pass reads, so that backward and the optimizer's step need not
            gather them again. Rows that can be read in place are never copied.

    Attributes:
        overlay: values that stand in place of some rows, if all rows are active; None for none.
    """

    def __init__(self, centers: ClassRows, ids: Tensor | None, *, keep: bool):
        self.centers, self.ids, self.size = centers, ids, centers.rows_per_class
        self.stamp = centers.stamp
        self.overlay: Overlay | None = None
        self.kept_LD: Tensor | None = None
        self.num_kept = 0  # classes are read in order; the rows of those before this one are kept
        if keep and not (ids is None and centers.in_place):
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

    def subset(self, positions: Tensor) -> "ActiveRows":
        """Return the rows of classes at these sorted positions as active rows of the same forward pass."""
        assert self.overlay is None
        rows = ActiveRows(self.centers, positions if self.ids is None else self.ids[positions], keep=False)
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
        rows = self.centers.read(slice(a, b) if self.ids is None else self.ids[a:b], out=out)
        return rows if self.overlay is None else self.overlay.over(rows, a, in_place=out is not None)
