"""Exact search of a gallery in blocks: how many items score at least as high as each probe's mates.

Counts are what ranks, and with them all of identification, are made of. Nothing of size probes x gallery has to exist,
and sums over blocks and processes are exact integers. Bounds of blocks do not depend on how many processes share the
gallery, so neither do scores; but for the class centers of a head that trains, of which each process has its shard.

There is one rule for equal scores: a stranger that scores as high as a mate comes before it. A network that gives all
images the same embedding therefore finds nobody.

Legend: P probes, D embedding, M known pairs of a probe and an item, B items of a block.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.group.collectives import default_group, max_over_processes, sum_over_processes

PROBES = 1024  # of a product
FEW = 4  # thresholds of a probe that are held against scores one after the other, where many scores reach them
# Blocks (first item, rows (B, D)) of this process's share of a gallery; of all processes each item comes once. The
# argument tells which blocks are wanted, if not all.
Blocks = Callable[["Wanted | None"], Iterable[tuple[int, Tensor]]]


@dataclass(frozen=True)
class Wanted:
    """Items that some probe knows, (M,) sorted."""

    items_M: Tensor

    def within(self, start: int, stop: int) -> bool:
        """Whether one of them lies there."""
        first, last = torch.searchsorted(self.items_M, torch.tensor([start, stop])).tolist()
        return last > first


@dataclass(frozen=True)
class Known:
    """Pairs of a probe and an item of the gallery that are no strangers to each other.

    Args:
        probe_M, item_M: which.
        counts_M: whether the item is a mate that is looked for; one that is not is left out, such as the probe itself.
    """

    probe_M: Tensor
    item_M: Tensor
    counts_M: Tensor

    def __len__(self) -> int:
        return len(self.probe_M)


def strangers_above(
    probes_PD: Tensor,
    known: Known,
    gallery: Blocks,
    others: Iterable[Blocks] = (),
    strangers_in_gallery: bool = True,
    together: Callable[[Callable[[], None]], None] = lambda work: work(),
) -> tuple[Tensor, Tensor]:
    """All processes call, with the same probes and known pairs.

    Args:
        probes_PD: of unit length, if scores are to be cosines.
        others: more galleries, of strangers only. Each is gone through once.
        strangers_in_gallery: whether items of the gallery that a probe does not know are strangers; otherwise they are
            left out.
        together: does some work such that what it raises on one process it raises on all.

    Returns:
        scores_M: of the known pairs.
        above_M: of each pair that counts, how many strangers score as high or higher: of equal scores the stranger
            comes first. Both on the device of the probes, and the same on all processes.
    """
    group, device = default_group(), probes_PD.device
    # Sorted by probe, and by item: blocks of a probe's pairs, and of an item's, are stretches.
    by_item = torch.argsort(known.item_M, stable=True)
    wanted = Wanted(known.item_M[by_item])
    scores_M = torch.full((len(known),), -torch.inf, device=device)

    def score() -> None:
        for start, rows_BD in gallery(wanted):
            first, last = torch.searchsorted(wanted.items_M, torch.tensor([start, start + len(rows_BD)])).tolist()
            here = by_item[first:last]
            for begin, scores_PB in _products(probes_PD, rows_BD, known.probe_M[here]):
                chosen = here[(known.probe_M[here] >= begin) & (known.probe_M[here] < begin + len(scores_PB))]
                places = (known.probe_M[chosen] - begin).to(device), (known.item_M[chosen] - start).to(device)
                scores_M[chosen.to(device)] = scores_PB[places]

    together(score)
    max_over_processes(scores_M, group)
    if torch.isnan(scores_M).any():
        raise ValueError(f"{int(torch.isnan(scores_M).sum()):,} of {len(scores_M):,} scores are NaN")

    counting = torch.nonzero(known.counts_M)[:, 0]
    thresholds = _Thresholds(known.probe_M[counting].to(device), scores_M[counting.to(device)], len(probes_PD))

    def count() -> None:
        for blocks in (gallery, *others) if strangers_in_gallery else others:
            for _, rows_BD in blocks(None):
                for begin, scores_PB in _products(probes_PD, rows_BD):
                    thresholds.count(begin, scores_PB)

    together(count)
    everyone_M = torch.zeros(len(known), dtype=torch.int64, device=device)
    everyone_M[counting.to(device)] = sum_over_processes(thresholds.at_least(), group)

    if strangers_in_gallery:  # of those above, the known ones are none
        acquainted = _Thresholds(known.probe_M[counting].to(device), scores_M[counting.to(device)], len(probes_PD))
        acquainted.add(known.probe_M.to(device), scores_M)
        everyone_M[counting.to(device)] -= acquainted.at_least()
    return scores_M, everyone_M


def best_mate_ranks(scores_PB: Tensor, mates_PB: Tensor) -> Tensor:
    """Return the rank of each probe's best mate, (P,), where all scores of a gallery are at hand.

    The rank is one more than the number of strangers that score at least as high as the mate, as in `strangers_above`.
    It has no meaning for a probe without mates.

    Args:
        scores_PB: -inf for an item that is neither mate nor stranger, such as the probe itself.
        mates_PB: whether the item is of the probe's class.
    """
    best_P = torch.where(mates_PB, scores_PB, -torch.inf).amax(1)
    return 1 + torch.count_nonzero((scores_PB >= best_P[:, None]).logical_and_(~mates_PB), dim=1)


def _products(probes_PD: Tensor, rows_BD: Tensor, only: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """First probe and scores (p, B) of each block of probes; of those only that one of `only` is in."""
    if rows_BD.shape[1] != probes_PD.shape[1]:
        raise ValueError(
            f"features that are searched are of {rows_BD.shape[1]} numbers, the probes' of {probes_PD.shape[1]}"
        )
    wanted = set((only // PROBES).unique().tolist()) if only is not None else None
    room = probes_PD.new_empty(min(PROBES, len(probes_PD)), len(rows_BD))
    for begin in range(0, len(probes_PD), PROBES):
        if wanted is None or begin // PROBES in wanted:
            block_PD = probes_PD[begin : begin + PROBES]
            yield begin, torch.mm(block_PD, rows_BD.T, out=room[: len(block_PD)])


class _Thresholds:
    """Of some thresholds of each probe, how many scores reach them."""

    def __init__(self, probe_T: Tensor, threshold_T: Tensor, num_probes: int):
        self.order_T = torch.argsort(_keys(probe_T, threshold_T), stable=True)
        self.probe_T = probe_T[self.order_T]
        self.keys_T = _keys(self.probe_T, threshold_T[self.order_T])
        self.place_T = torch.arange(len(probe_T), device=probe_T.device) - torch.searchsorted(
            self.probe_T, self.probe_T
        )
        # Where all probes have few, also as a table, with counts of its own.
        width = int(self.place_T.max()) + 1 if len(probe_T) else 0
        self.table_PT = torch.full((num_probes, width if width <= FEW else 0), torch.inf, device=probe_T.device)
        self.reached_PT = torch.zeros_like(self.table_PT, dtype=torch.int64)
        if self.table_PT.numel():
            self.table_PT[self.probe_T, self.place_T] = threshold_T[self.order_T]
        # How many scores lie between a threshold and the next of its probe.
        self.between_T = torch.zeros(len(probe_T) + 1, dtype=torch.int64, device=probe_T.device)
        self.lowest_P = torch.full((num_probes,), torch.inf, device=probe_T.device)
        self.lowest_P.scatter_reduce_(0, probe_T, threshold_T, "amin")

    def count(self, begin: int, scores_PB: Tensor) -> None:
        """Scores of the probes from `begin` on. Mostly few reach the lowest threshold, and only those are sorted in."""
        here = slice(begin, begin + len(scores_PB))
        lowest_P = self.lowest_P[here]
        some = torch.nonzero(scores_PB.amax(1) >= lowest_P)[:, 0]
        if len(some) <= len(scores_PB) // 2:  # or copying them would take longer than it saves
            scores_PB, lowest_P = scores_PB[some], lowest_P[some]
        elif self.table_PT.numel():
            for place, threshold_P in enumerate(self.table_PT[here].unbind(1)):
                self.reached_PT[here, place] += torch.count_nonzero(scores_PB >= threshold_P[:, None], dim=1)
            return
        else:
            some = torch.arange(len(scores_PB), device=some.device)
        probe, item = torch.nonzero(scores_PB >= lowest_P[:, None], as_tuple=True)
        self.add(some[probe] + begin, scores_PB[probe, item])

    def add(self, probe: Tensor, scores: Tensor) -> None:
        if len(self.keys_T):
            reach = scores >= self.lowest_P[probe]
            places = torch.searchsorted(self.keys_T, _keys(probe[reach], scores[reach]), right=True)
            self.between_T += torch.bincount(places, minlength=len(self.between_T))

    def at_least(self) -> Tensor:
        """(T,), in the order they were given."""
        # A score that reaches none of its probe's thresholds was never counted, so all that lies behind a threshold
        # and before the probe's end reaches it.
        behind = self.between_T.flip(0).cumsum(0).flip(0)
        ends = torch.searchsorted(self.probe_T, self.probe_T, right=True)
        counts = torch.empty(len(self.keys_T), dtype=torch.int64, device=behind.device)
        behind = torch.cat([behind, behind.new_zeros(1)])
        counts[self.order_T] = behind[1:-1] - behind[ends + 1]
        if self.table_PT.numel():
            counts[self.order_T] += self.reached_PT[self.probe_T, self.place_T]
        return counts


def _keys(probe: Tensor, score: Tensor) -> Tensor:
    """int64 numbers that are ordered by probe and then by score, exactly."""
    bits = (score.float() + 0.0).view(torch.int32).long()  # + 0.0: minus zero is zero
    return (probe.long() << 32) + torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
