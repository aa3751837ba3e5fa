"""Values that stand in place of some stored rows in one forward pass, until the optimizer's step.

An overlay changes no stored row. The step starts from the overlaid values, and a skipped step leaves no trace.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..objectives.row_gradient import RowGradient
from ..objectives.softmax import chunks
from .chunk_gradient import ChunkGradient, StreamedGradient, SummedGradient
from .class_rows import ClassRows, RowIndex

if TYPE_CHECKING:
    from .active import ActiveRows


class Overlay:
    """Values of some rows of the shard in one forward pass.

    Args:
        ids: int64 (m,), sorted rows of the shard.
        values_mD: their values.
        lent_m: bool, rows that only lend their place: after the step they have the value that is stored now.
    """

    def __init__(self, ids: Tensor, values_mD: Tensor, lent_m: Tensor):
        self.ids, self.values_mD, self.lent_m = ids, values_mD, lent_m
        self._sorted: list[int] = ids.tolist()
        self._lent: list[int] = ids[lent_m].tolist()

    def within(self, a: int, b: int) -> slice:
        """Return which of the values belong to the rows a to b."""
        return slice(bisect_left(self._sorted, a), bisect_left(self._sorted, b))

    def lends(self, a: int, b: int) -> bool:
        """Return whether one of the rows a to b only lends its place."""
        return bisect_left(self._lent, a) < bisect_left(self._lent, b)

    def over(self, rows_kD: Tensor, a: int, *, in_place: bool) -> Tensor:
        """Return rows a, a + 1, ... of the shard (k, D) with the values of this overlay."""
        inside = self.within(a, a + len(rows_kD))
        if inside.start == inside.stop:
            return rows_kD
        rows_kD = rows_kD if in_place else rows_kD.clone()
        rows_kD[self.ids[inside] - a] = self.values_mD[inside]
        return rows_kD

    def at(self, rows_nD: Tensor, wanted: Tensor) -> Tensor:
        """Return rows `wanted` (n,) of the shard, given as stored (n, D), with the values of this overlay."""
        if not len(self.ids):
            return rows_nD
        place_n = torch.searchsorted(self.ids, wanted).clamp_(max=len(self.ids) - 1)
        return torch.where((self.ids[place_n] == wanted)[:, None], self.values_mD[place_n], rows_nD)


def stream_overlaid(
    entries: Sequence[tuple["ActiveRows", RowGradient]], centers: ClassRows
) -> Iterator[tuple[RowIndex, Tensor, ChunkGradient]]:
    """Yield (index, rows, gradient) of each chunk of the rows, from forward passes over all rows with overlays.

    A row starts the step from the value that the last of the passes gave it, and only the gradient by that value
    counts. Passes to which the row lent its place do not count. A row that lent its place in all of them is left out.
    """
    overlays = [active.overlay for active, _ in entries]
    for a, b in chunks(centers.shard.size):
        if len(entries) == 1 and overlays[0] is not None and not overlays[0].lends(a, b):  # nearly all chunks
            (active, entry), index = entries[0], slice(a, b)
            rows_kD = active.slice(a, b)
            yield index, rows_kD, StreamedGradient([entry], a, b, rows_kD, centers.workspace)
            continue
        rows_kD = centers.read(slice(a, b)).clone()
        source_k = torch.full((b - a,), -1, device=rows_kD.device)  # the pass that gave the value; -1 for the store
        takes_part = torch.ones(len(entries), b - a, dtype=torch.bool, device=rows_kD.device)
        for number, overlay in enumerate(overlays):
            assert overlay is not None
            inside = overlay.within(a, b)
            places, lent = overlay.ids[inside] - a, overlay.lent_m[inside]
            takes_part[number, places[lent]] = False
            source_k[places[~lent]] = number
            rows_kD[places[~lent]] = overlay.values_mD[inside][~lent]
        numbers = torch.arange(len(entries), device=rows_kD.device)[:, None]
        takes_part &= (source_k == -1) | (source_k == numbers)
        gradient_kD = torch.zeros_like(rows_kD)
        for (active, entry), mine_k in zip(entries, takes_part, strict=True):
            own = entry.add_to(torch.zeros_like(rows_kD), a, b, active.slice(a, b))
            gradient_kD += torch.where(mine_k[:, None], own, 0)
        kept = takes_part.any(0).nonzero()[:, 0]
        rows_kD = rows_kD[kept]
        yield kept + a, rows_kD, SummedGradient(gradient_kD[kept], rows_kD, centers.workspace)
