"""Row gradients that wait for the optimizer's step.

Backward appends one entry for each graph it passes. `step()` streams the sum of the entries chunk by chunk, and
`zero_grad()` drops them. So micro-batches, two forwards in a step and a skipped step need no special case.

An entry computes its gradient from the rows when the step needs it. It therefore belongs to the rows of its forward
pass: once these have changed, the entry is refused.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..margins.margin import Margin
from ..objectives.row_gradient import RowGradient
from ..objectives.softmax import chunks
from ..objectives.streamed import Streamed
from .active import ActiveRows
from .chunk_gradient import ChunkGradient, StreamedGradient, SummedGradient
from .class_rows import ClassRows, RowIndex
from .overlay import stream_overlaid

MOST_WITHOUT_OPTIMIZER = 8  # entries kept for an optimizer that may still be created
MOST = 1000  # entries; each takes memory, and that many backward passes without a step are a mistake


class PendingGradients:
    """Pairs of the rows of a forward pass and the gradient that its backward pass computed for them.

    Attributes:
        proxy: a scalar that represents all rows in the optimizer's parameter group. Its `grad` is None without
            entries, else 1, or NaN after an overflow on any process. Multiplying this `grad` multiplies the gradient
            of the rows, so `torch.amp.GradScaler` unscales rows and skips their step as it does with parameters.
        dropped: whether an entry was dropped because no optimizer existed.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.entries: list[tuple[ActiveRows, RowGradient]] = []
        with torch.inference_mode(False):
            self.proxy = torch.zeros((), device=device, requires_grad=True)
        self.dropped = False

    def to(self, device: torch.device) -> None:
        """Move the proxy to a device. It stays the same tensor, as parameters do in `nn.Module.to`."""
        moved = self.proxy.data.to(device)
        if torch._has_compatible_shallow_copy_type(self.proxy, moved):
            self.proxy.data = moved

    def append(self, gradient: RowGradient, finite: Tensor, *, has_optimizer: bool) -> None:
        """Keep the gradient of one backward pass.

        Args:
            gradient: gradient of the active rows.
            finite: boolean scalar, the same on all processes; False where the gradient overflowed.
            has_optimizer: whether an optimizer exists. Without one only a few entries are kept.

        Raises:
            RuntimeError: `MOST` entries are waiting already.
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
                "zero_grad() on the optimizer that head.optimizer(lr) returned"
            )
        if self.proxy.grad is None and self.entries:  # setting grad to None drops the gradient of the rows
            self.clear()
        one = torch.where(finite, 1.0, torch.nan).to(self.proxy)
        self.proxy.grad = one if self.proxy.grad is None else self.proxy.grad * one
        if not gradient.rows.centers.learned:  # the entry is kept for the bias of all classes and the margin
            gradient.rows.release()
            gradient.release()
        self.entries.append((gradient.rows, gradient))

    def begin(self) -> None:
        """Mark a backward pass, so that `torch.amp.GradScaler` finds a gradient even if no entry follows."""
        if self.proxy.grad is None:
            self.clear()  # setting grad to None drops the gradient of the rows
            self.proxy.grad = torch.ones_like(self.proxy)

    def clear(self) -> None:
        """Drop all entries."""
        for rows, gradient in self.entries:
            rows.release()
            gradient.release()
        self.entries.clear()
        self.proxy.grad, self.dropped = None, False

    @property
    def kept_bytes(self) -> int:
        """Bytes of rows and cosines that the entries keep."""
        return sum(rows.kept_bytes + gradient.kept_bytes for rows, gradient in self.entries)

    def losses(self) -> list[Streamed]:
        """Return the losses of the entries, in the order of their forward passes."""
        if self.proxy.grad is None:  # setting grad to None drops the gradient of the rows
            return []
        return sorted((gradient.loss for _, gradient in self.entries), key=lambda loss: loss.inputs.batch.key)

    def last_margin(self) -> Margin | None:
        """Return the margin of the last forward pass among the entries; None without entries."""
        losses = self.losses()
        return losses[-1].margin if losses else None

    def bias_gradient(self) -> Tensor | None:
        """Return the gradient of the bias that all classes share (1, 1), once `stream` has begun; None without one."""
        biases = [(gradient.shared_bias, gradient.factor) for _, gradient in self.entries]
        parts = [bias * factor for bias, factor in biases if bias is not None]
        return torch.stack(parts).sum(0) if parts and self.proxy.grad is not None else None

    def stream(self, centers: ClassRows) -> Iterator[tuple[RowIndex, Tensor, ChunkGradient]]:
        """Yield (index, rows, gradient) of each chunk of the classes that any entry touches; none if rows do not learn.

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
                "write into rows; call zero_grad() after each step() and compute the gradients again"
            )
        if not self.entries or self.proxy.grad is None:
            return
        gradients = [gradient for _, gradient in self.entries]
        for gradient in gradients:
            gradient.multiply(self.proxy.grad.to(centers.like.device))
        if not centers.learned:
            return
        active = self.entries[0][0]
        if active.overlay is not None:
            yield from stream_overlaid(self.entries, centers)
            return
        ids = active.ids
        if any(rows.ids is not ids for rows, _ in self.entries):
            yield from self._stream_union(centers)
            return
        for a, b in chunks(len(active)):
            rows = active.slice(a, b)
            yield active.index(a, b), rows, StreamedGradient(gradients, a, b, rows, centers.workspace)

    def _stream_union(self, centers: ClassRows) -> Iterator[tuple[RowIndex, Tensor, ChunkGradient]]:
        """Stream entries with different rows: each entry adds to its own rows of a chunk."""
        parts = [(ids, first, entry) for active, entry in self.entries for first, ids in active.parts()]
        union = torch.unique(torch.cat([ids for ids, _, _ in parts]))
        for start, stop in chunks(len(union)):
            chunk = union[start:stop]
            rows = centers.read(chunk)
            rows_kW = rows.view(len(chunk), -1)  # one line a class
            gradient_kW = torch.zeros_like(rows_kW)
            for ids, first, entry in parts:
                a, b = torch.searchsorted(ids, torch.stack([chunk[0], chunk[-1] + 1])).tolist()
                inside = torch.searchsorted(chunk, ids[a:b])
                own_rows = rows_kW[inside].view(-1, centers.width)
                own_gradient = entry.add_to(torch.zeros_like(own_rows), first + a, first + b, own_rows)
                gradient_kW.index_add_(0, inside, own_gradient.view(len(inside), rows_kW.shape[1]))
            yield chunk, rows, SummedGradient(gradient_kW.view_as(rows), rows, centers.workspace)
