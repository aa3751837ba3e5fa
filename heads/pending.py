"""Row gradients that wait for the optimizer's step.

Backward appends one entry for each graph it passes; `step()` streams their sum chunk by chunk, and
`zero_grad()` drops them. So micro-batches, two forwards in a step and a skipped step need no special case.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .centers import ActiveRows, ClassCenters, Index
from .softmax import RowGradient, chunks


class PendingGradients:
    """Pairs of the rows of a forward and the gradient that its backward found for them."""

    def __init__(self) -> None:
        self.entries: list[tuple[ActiveRows, RowGradient]] = []

    def append(self, rows: ActiveRows, gradient: RowGradient) -> None:
        self.entries.append((rows, gradient))

    def clear(self) -> None:
        self.entries.clear()

    @property
    def kept_bytes(self) -> int:
        return sum(rows.kept_bytes + gradient.kept_bytes for rows, gradient in self.entries)

    def stream(self, centers: ClassCenters) -> Iterator[tuple[Index, Tensor, Tensor]]:
        """(index, rows, gradient) of each chunk of the rows that any entry touches.

        The caller may change the rows of a chunk once it has it: no later chunk reads them again.
        """
        if not self.entries:
            return
        (active, first), *others = self.entries
        ids = active.ids
        if any(rows.ids is not ids for rows, _ in others):
            yield from self._stream_union(centers)
            return
        for a, b in chunks(len(active)):
            rows = active.take(a, b)
            gradient = first.of_rows(a, b, rows)
            for _, other in others:
                gradient += other.of_rows(a, b, rows)
            yield slice(a, b) if ids is None else ids[a:b], rows, gradient

    def _stream_union(self, centers: ClassCenters) -> Iterator[tuple[Index, Tensor, Tensor]]:
        """The same where entries touch different rows: each adds to those of a chunk that are its own."""
        every = torch.arange(centers.shard.size, device=centers.rows.device)
        listed = [every if active.ids is None else active.ids for active, _ in self.entries]
        union = torch.unique(torch.cat(listed))
        for start, stop in chunks(len(union)):
            chunk = union[start:stop]
            rows = centers.read(chunk)
            gradient = torch.zeros_like(rows)
            for ids, (_, entry) in zip(listed, self.entries, strict=True):
                a, b = torch.searchsorted(ids, torch.stack([chunk[0], chunk[-1] + 1])).tolist()
                inside = torch.searchsorted(chunk, ids[a:b])
                gradient.index_add_(0, inside, entry.of_rows(a, b, rows[inside]))
            yield chunk, rows, gradient
