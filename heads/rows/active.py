"""The rows that take part in one forward pass."""

from torch import Tensor

from .class_rows import ClassRows


class ActiveRows:
    """The rows of one forward pass, addressed by their positions among the active rows.

    Args:
        centers: the class centers that hold them.
        ids: int64 (K,), sorted rows of the shard; None for all.
        keep: whether to keep the rows that the first pass reads, so that backward and the optimizer's step need not
            gather them again. Rows that can be read in place are never copied.
    """

    def __init__(self, centers: ClassRows, ids: Tensor | None, *, keep: bool):
        self.centers, self.ids = centers, ids
        self.stamp = centers.stamp
        self.kept_KD: Tensor | None = None
        self.num_kept = 0  # rows are read in order; those before this one are kept
        if keep and not (ids is None and centers.in_place):
            self.kept_KD = centers.workspace.acquire("rows", (len(self), centers.width), centers.like)

    def __len__(self) -> int:
        return self.centers.shard.size if self.ids is None else len(self.ids)

    @property
    def kept_bytes(self) -> int:
        return 0 if self.kept_KD is None else self.kept_KD.nbytes

    def gather(self, positions: Tensor) -> Tensor:
        """Return copies of the rows at these positions (n,) -> (n, width)."""
        return self.centers.read(positions if self.ids is None else self.ids[positions])

    def subset(self, positions: Tensor) -> "ActiveRows":
        """Return the rows at these sorted positions as active rows of the same forward pass."""
        rows = ActiveRows(self.centers, positions if self.ids is None else self.ids[positions], keep=False)
        rows.stamp = self.stamp
        return rows

    def slice(self, a: int, b: int) -> Tensor:
        """Return rows a to b, (b - a, width): views of rows in place or kept, else copies."""
        if self.kept_KD is None:
            return self._read(a, b)
        if b > self.num_kept:
            assert a == self.num_kept
            self._read(a, b, out=self.kept_KD[a:b])
            self.num_kept = b
        return self.kept_KD[a:b]

    @property
    def changed(self) -> bool:
        """Return whether a step, a load or a write has changed the rows since the forward pass."""
        return self.stamp != self.centers.stamp

    def release(self) -> None:
        """Return the memory of kept rows to the workspace."""
        if self.kept_KD is not None:
            self.centers.workspace.release("rows", self.kept_KD)
            self.kept_KD, self.num_kept = None, 0

    def _read(self, a: int, b: int, out: Tensor | None = None) -> Tensor:
        return self.centers.read(slice(a, b) if self.ids is None else self.ids[a:b], out=out)
