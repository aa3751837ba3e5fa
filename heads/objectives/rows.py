"""The interface by which an objective reads class rows, in any store.

A class has one row or a block of them (`heads.objectives.blocks`), and is addressed by its position.
"""

from typing import Protocol

from torch import Tensor

MIN_NORM = 1e-12


class RowSequence(Protocol):
    """Rows of classes that can be read in order."""

    def __len__(self) -> int:
        """Return the number of classes."""
        ...

    def slice(self, a: int, b: int) -> Tensor:
        """Return the rows of classes a to b, (rows, D)."""
        ...


class Rows(RowSequence, Protocol):
    """The active rows of one forward pass."""

    def gather(self, positions: Tensor) -> Tensor:
        """Return the rows of classes at positions (n,) as (rows, D)."""
        ...

    def subset(self, positions: Tensor) -> "Rows":
        """Return the rows of classes at sorted positions."""
        ...

    def release(self) -> None:
        """Free the memory of kept rows, which are not needed any more."""
        ...

    @property
    def changed(self) -> bool:
        """Return whether the rows have changed since the forward pass."""
        ...


class DenseRows:
    """The rows of a tensor (K, D)."""

    def __init__(self, rows_KD: Tensor):
        self.rows_KD = rows_KD

    def __len__(self) -> int:
        return len(self.rows_KD)

    def gather(self, positions: Tensor) -> Tensor:
        return self.rows_KD[positions]

    def slice(self, a: int, b: int) -> Tensor:
        return self.rows_KD[a:b]

    def subset(self, positions: Tensor) -> "DenseRows":
        return DenseRows(self.rows_KD[positions])

    def release(self) -> None:
        """Do nothing: the tensor belongs to the caller."""

    @property
    def changed(self) -> bool:
        return False
