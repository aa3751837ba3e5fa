"""The gradient of a chunk of rows, as a row optimizer receives it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from ..core.workspace import Workspace
from ..objectives.row_gradient import RowGradient


class ChunkGradient(ABC):
    """The gradient of a chunk of rows (k, width): no tensor yet, but able to add itself to one.

    Args:
        rows: (k, width), before the update.
        workspace: provides the memory for `dense`.
    """

    def __init__(self, rows: Tensor, workspace: Workspace):
        self.rows, self.workspace = rows, workspace

    @abstractmethod
    def add_to(self, total: Tensor, *, beta: float = 1.0, decay: float = 0.0) -> Tensor:
        """Compute total <- beta total + gradient + decay rows in place and return `total` (k, width)."""

    def dense(self, *, decay: float = 0.0) -> Tensor:
        """Return gradient + decay rows, in memory that the next chunk reuses."""
        return self.add_to(self.workspace.borrow("gradient", tuple(self.rows.shape), self.rows), beta=0.0, decay=decay)


class StreamedGradient(ChunkGradient):
    """Rows a to b of one or more gradients, which compute their parts when they are added."""

    def __init__(self, gradients: Sequence[RowGradient], a: int, b: int, rows: Tensor, workspace: Workspace):
        super().__init__(rows, workspace)
        self.gradients, self.a, self.b = gradients, a, b

    def add_to(self, total: Tensor, *, beta: float = 1.0, decay: float = 0.0) -> Tensor:
        for gradient in self.gradients:
            gradient.add_to(total, self.a, self.b, self.rows, beta=beta, decay=decay)
            beta, decay = 1.0, 0.0
        return total


class SummedGradient(ChunkGradient):
    """A gradient (k, width) that is already a tensor."""

    def __init__(self, gradient: Tensor, rows: Tensor, workspace: Workspace):
        super().__init__(rows, workspace)
        self.gradient = gradient

    def add_to(self, total: Tensor, *, beta: float = 1.0, decay: float = 0.0) -> Tensor:
        total = total.mul_(beta).add_(self.gradient) if beta else total.copy_(self.gradient)
        return total.add_(self.rows, alpha=decay)
