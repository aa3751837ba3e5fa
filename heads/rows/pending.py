"""Row gradients that wait for the optimizer's step.

Backward appends one entry for each graph it passes; `step()` streams their sum chunk by chunk, and
`zero_grad()` drops them. So micro-batches, two forwards in a step and a skipped step need no special case.

An entry computes the gradient from the rows when the step asks for it, so it belongs to the rows of its forward
pass: once these have changed, applying it is refused.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..core.workspace import Workspace
from ..objectives.row_gradient import RowGradient
from ..objectives.softmax import chunks
from .active import ActiveRows
from .centers import ClassCenters, Index

MOST_WITHOUT_OPTIMIZER = 8  # entries that are kept for an optimizer which may still be made
MOST = 1000  # entries: that many backward passes without a step are a mistake, and each takes memory


class ChunkGradient:
    """The gradient of a chunk of rows (k, width): not a tensor yet, but what adds it to one.

    Args:
        rows: as they are before the update.
        parts: functions of (total, beta, decay) that do total <- beta total + part + decay rows, in place.
        workspace: where `dense` takes its memory.
    """

    def __init__(self, rows: Tensor, parts: list[Callable[[Tensor, float, float], object]], workspace: Workspace):
        self.rows, self.parts, self.workspace = rows, parts, workspace

    def add_to(self, total: Tensor, *, beta: float = 1.0, decay: float = 0.0) -> Tensor:
        """total <- beta total + gradient + decay rows, in place."""
        for part in self.parts:
            part(total, beta, decay)
            beta, decay = 1.0, 0.0
        return total

    def dense(self, *, decay: float = 0.0) -> Tensor:
        """gradient + decay rows, in memory lent until the next chunk."""
        return self.add_to(self.workspace.borrow("gradient", tuple(self.rows.shape), self.rows), beta=0.0, decay=decay)


class PendingGradients:
    """Pairs of the rows of a forward and the gradient that its backward found for them.

    Attributes:
        proxy: a scalar that stands for all rows in the optimizer's parameter group. Its `grad` is None while nothing
            waits, else 1, or NaN after an overflow on any process. Whatever multiplies this `grad` multiplies the
            gradient of the rows: so `torch.amp.GradScaler` unscales rows and skips their step as it does with
            parameters.
        dropped: whether an entry was dropped, since there was no optimizer to wait for.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.entries: list[tuple[ActiveRows, RowGradient]] = []
        with torch.inference_mode(False):
            self.proxy = torch.zeros((), device=device, requires_grad=True)
        self.dropped = False

    def to(self, device: torch.device) -> None:
        """Move the proxy where the head is now; as `nn.Module` moves parameters, it stays the same tensor."""
        moved = self.proxy.data.to(device)
        if torch._has_compatible_shallow_copy_type(self.proxy, moved):
            self.proxy.data = moved

    def append(self, gradient: RowGradient, finite: Tensor, *, has_optimizer: bool) -> None:
        """Keep the gradient of one backward pass.

        Args:
            finite: boolean scalar, the same on all processes; False where the gradient overflowed.
            has_optimizer: whether an optimizer has been made. Without one only a few entries are kept.
        """
        assert isinstance(gradient.rows, ActiveRows)
        if not has_optimizer and len(self.entries) >= MOST_WITHOUT_OPTIMIZER:
            self.dropped = True
            gradient.rows.release()
            gradient.release()
            return
        if len(self.entries) >= MOST:
            raise RuntimeError(
                f"{MOST} backward passes have come since the row optimizer last stepped; call step() and then "
                "zero_grad() on what head.optimizer(lr) returned"
            )
        if self.proxy.grad is None and self.entries:  # whoever took it away dropped the gradient of the rows
            self.clear()
        one = torch.where(finite, 1.0, torch.nan).to(self.proxy)
        self.proxy.grad = one if self.proxy.grad is None else self.proxy.grad * one
        self.entries.append((gradient.rows, gradient))

    def clear(self) -> None:
        """Drop all entries."""
        for rows, gradient in self.entries:
            rows.release()
            gradient.release()
        self.entries.clear()
        self.proxy.grad, self.dropped = None, False

    @property
    def kept_bytes(self) -> int:
        return sum(rows.kept_bytes + gradient.kept_bytes for rows, gradient in self.entries)

    def stream(self, centers: ClassCenters) -> Iterator[tuple[Index, Tensor, ChunkGradient]]:
        """Yield (index, rows, gradient) of each chunk of the rows that any entry touches.

        The caller may change the rows of a chunk once it has the gradient: no later chunk reads them again.

        Raises:
            RuntimeError: the rows have changed since an entry's forward pass, or entries were dropped.
        """
        if self.dropped:
            raise RuntimeError(
                "gradients of the class centers were dropped before this optimizer was made; make it with "
                "head.optimizer(lr) before training, or call its zero_grad() and run the batch again"
            )
        if any(rows.changed for rows, _ in self.entries):
            raise RuntimeError(
                "the class centers have changed since these gradients were computed, by step(), load_state_dict() or a "
                "write into rows; call zero_grad() after each step() and compute gradients from the rows as they are"
            )
        if not self.entries or self.proxy.grad is None:
            return
        for _, entry in self.entries:
            entry.multiply(self.proxy.grad.to(centers.like.device))
        (active, _), *others = self.entries
        ids = active.ids
        if any(rows.ids is not ids for rows, _ in others):
            yield from self._stream_union(centers)
            return
        for a, b in chunks(len(active)):
            rows = active.slice(a, b)
            parts = [_part(gradient, a, b, rows) for _, gradient in self.entries]
            yield slice(a, b) if ids is None else ids[a:b], rows, ChunkGradient(rows, parts, centers.workspace)

    def _stream_union(self, centers: ClassCenters) -> Iterator[tuple[Index, Tensor, ChunkGradient]]:
        """The same where entries touch different rows: each adds to those of a chunk that are its own."""
        every = torch.arange(centers.shard.size, device=centers.like.device)
        listed = [every if active.ids is None else active.ids for active, _ in self.entries]
        union = torch.unique(torch.cat(listed))
        for start, stop in chunks(len(union)):
            chunk = union[start:stop]
            rows = centers.read(chunk)
            gradient = torch.zeros_like(rows)
            for ids, (_, entry) in zip(listed, self.entries, strict=True):
                a, b = torch.searchsorted(ids, torch.stack([chunk[0], chunk[-1] + 1])).tolist()
                inside = torch.searchsorted(chunk, ids[a:b])
                own = rows[inside]
                gradient.index_add_(0, inside, entry.add_to(torch.zeros_like(own), a, b, own))
            yield chunk, rows, ChunkGradient(rows, [_sum(gradient, rows)], centers.workspace)


def _part(gradient: RowGradient, a: int, b: int, rows: Tensor) -> Callable[[Tensor, float, float], object]:
    return lambda total, beta, decay: gradient.add_to(total, a, b, rows, beta=beta, decay=decay)


def _sum(gradient: Tensor, rows: Tensor) -> Callable[[Tensor, float, float], object]:
    def add_to(total: Tensor, beta: float, decay: float) -> None:
        total = total.mul_(beta).add_(gradient) if beta else total.copy_(gradient)
        total.add_(rows, alpha=decay)

    return add_to
