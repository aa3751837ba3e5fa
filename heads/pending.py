"""Row gradients that wait for the optimizer's step.

Backward appends one entry for each graph it passes; `step()` streams their sum chunk by chunk, and
`zero_grad()` drops them. So micro-batches, two forwards in a step and a skipped step need no special case.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .centers import ClassCenters, Index
from .softmax import RowGradient, chunks


class PendingGradients:
    """Gradients of some rows each: (ids, gradient), ids None for all rows of the shard."""

    def __init__(self) -> None:
        self.entries: list[tuple[Tensor | None, RowGradient]] = []

    def append(self, ids: Tensor | None, gradient: RowGradient) -> None:
        self.entries.append((ids, gradient))

    def clear(self) -> None:
        self.entries.clear()

    @property
    def kept_bytes(self) -> int:
        return sum(gradient.kept_bytes for _, gradient in self.entries)

    def stream(self, centers: ClassCenters) -> Iterator[tuple[Index, Tensor, Tensor]]:
        """(index, rows, gradient) of each chunk of the rows that any entry touches.

        The caller may change the rows of a chunk once it has it: no later chunk reads them again.
        """
        if not self.entries:
            return
        (first_ids, first), *others = self.entries
        aligned = all(ids is first_ids for ids, _ in others)
        union = first_ids if aligned else self._union(centers.shard.size)
        for a, b in chunks(centers.shard.size if union is None else len(union)):
            index: Index = slice(a, b) if union is None else union[a:b]
            rows = centers.read(index)
            if aligned:
                gradient = first.of_rows(a, b, rows)
                for _, other in others:
                    gradient += other.of_rows(a, b, rows)
            else:
                gradient = self._scattered(union[a:b], rows)  # type: ignore[index]
            yield index, rows, gradient

    def _union(self, num_rows: int) -> Tensor | None:
        listed = [ids for ids, _ in self.entries if ids is not None]
        return (
            torch.unique(torch.cat(listed))
            if len(listed) == len(self.entries)
            else torch.arange(num_rows, device=listed[0].device)
        )

    def _scattered(self, chunk_ids: Tensor, rows: Tensor) -> Tensor:
        gradient = torch.zeros_like(rows)
        first, last = int(chunk_ids[0]), int(chunk_ids[-1])
        for ids, entry in self.entries:
            if ids is None:
                gradient += entry.of_rows(first, last + 1, rows)
                continue
            a, b = torch.searchsorted(ids, ids.new_tensor([first, last + 1])).tolist()
            inside = torch.searchsorted(chunk_ids, ids[a:b])
            gradient.index_add_(0, inside, entry.of_rows(a, b, rows[inside]))
        return gradient
