"""Exact search of a gallery in blocks: how many items score at least as high as each probe's mates.

Ranks, and all metrics of identification, follow from these counts. Memory does not grow with probes x gallery, and
counts are exact integers over blocks and processes. Block bounds do not depend on the number of processes that share
the gallery, so scores do not either. The class centers of a head in training are an exception: each process searches
its shard.

There is one rule for equal scores: a stranger that scores as high as a mate comes before it. A network that gives all
images the same embedding therefore identifies no image.

Legend: P probes, D embedding, M known pairs of a probe and an item, B items of a block, R rows of an item,
T thresholds.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.group.collectives import default_group, max_over_processes, sum_over_processes

PROBES = 1024  # probes in a matrix product
FEW = 4  # thresholds of a probe that are compared with the scores one by one if many scores reach them
# Blocks (first item, rows (B, D)) of this process's share of a gallery. If an item has R rows, (B, R, D), the one with
# the highest score counts. Each item is in the blocks of one process. The argument names the items whose blocks are
# needed; None for all.
Blocks = Callable[["WantedItems | None"], Iterable[tuple[int, Tensor]]]


@dataclass(frozen=True)
class WantedItems:
    """Sorted items (M,) of which the search needs the blocks."""

    items_M: Tensor

    def within(self, start: int, stop: int) -> bool:
        """Return whether one of the items is in [start, stop)."""
        begin, end = torch.searchsorted(self.items_M, torch.tensor([start, stop])).tolist()
        return end > begin


@dataclass(frozen=True)
class KnownPairs:
    """Pairs of a probe and a gallery item that are not strangers.

    Args:
        probe_M: index of the probe.
        item_M: index of the item.
        is_mate_M: whether the item is a mate to be found. Other items, such as the probe itself, are ignored.
    """

    probe_M: Tensor
    item_M: Tensor
    is_mate_M: Tensor

    def __len__(self) -> int:
        return len(self.probe_M)


def count_strangers_above(
    probes_PD: Tensor,
    known: KnownPairs,
    gallery: Blocks,
    distractors: Iterable[Blocks] = (),
    strangers_in_gallery: bool = True,
    together: Callable[[Callable[[], None]], None] = lambda work: work(),
) -> tuple[Tensor, Tensor]:
    """Count for each mate the strangers that come before it. All processes call it with the same probes and pairs.

    Args:
        probes_PD: probes, of unit length if scores are to be cosines.
        known: all pairs of a probe and a gallery item that are not strangers.
        gallery: its blocks, which are read twice.
        distractors: further galleries that contain strangers only, each read once.
        strangers_in_gallery: whether gallery items that a probe does not know are strangers. They are ignored
            otherwise.
        together: runs a function such that an error on one process is raised on all.

    Returns:
        scores_M: score of each known pair.
        above_M: number of strangers that score at least as high as the mate; 0 for a pair that is no mate. Both are
            on the device of the probes and equal on all processes.

    Raises:
        ValueError: NaN scores, or probes and items of different widths.
    """
    scores_M = _score_known(probes_PD, known, gallery, together)
    mates = torch.nonzero(known.is_mate_M)[:, 0]
    mates_on_device, num_probes = mates.to(probes_PD.device), len(probes_PD)
    probe_T, threshold_T = known.probe_M[mates].to(probes_PD.device), scores_M[mates_on_device]
    thresholds = _Thresholds(probe_T, threshold_T, num_probes)

    def count() -> None:
        for blocks in (gallery, *distractors) if strangers_in_gallery else distractors:
            for _, rows_BD in blocks(None):
                for begin, scores_PB in _products(probes_PD, rows_BD):
                    thresholds.count(begin, scores_PB)

    together(count)
    above_M = torch.zeros(len(known), dtype=torch.int64, device=probes_PD.device)
    above_M[mates_on_device] = sum_over_processes(thresholds.counts(), default_group())
    if strangers_in_gallery:  # the known items were counted too
        known_above = _Thresholds(probe_T, threshold_T, num_probes)
        known_above.add(known.probe_M.to(probes_PD.device), scores_M)
        above_M[mates_on_device] -= known_above.counts()
    return scores_M, above_M


def best_mate_ranks(scores_PB: Tensor, mates_PB: Tensor) -> Tensor:
    """Return the rank of each probe's best mate, (P,), from the scores of a whole gallery.

    The rank is one more than the number of strangers that score at least as high as the mate, as in
    `count_strangers_above`. It has no meaning for a probe without mates.

    Args:
        scores_PB: -inf for an item that is neither mate nor stranger, such as the probe itself.
        mates_PB: whether the item is of the probe's class.
    """
    best_P = torch.where(mates_PB, scores_PB, -torch.inf).amax(1)
    return 1 + torch.count_nonzero((scores_PB >= best_P[:, None]).logical_and_(~mates_PB), dim=1)


def _score_known(
    probes_PD: Tensor, known: KnownPairs, gallery: Blocks, together: Callable[[Callable[[], None]], None]
) -> Tensor:
    """Return the scores of the known pairs, (M,), on all processes."""
    device = probes_PD.device
    # Sorted by item, so that the pairs of a block's items are contiguous.
    by_item = torch.argsort(known.item_M, stable=True)
    wanted = WantedItems(known.item_M[by_item])
    scores_M = torch.full((len(known),), -torch.inf, device=device)

    def score() -> None:
        for start, rows_BD in gallery(wanted):
            begin, end = torch.searchsorted(wanted.items_M, torch.tensor([start, start + len(rows_BD)])).tolist()
            of_block = by_item[begin:end]
            for first_probe, scores_PB in _products(probes_PD, rows_BD, known.probe_M[of_block]):
                probes = known.probe_M[of_block]
                pairs = of_block[(probes >= first_probe) & (probes < first_probe + len(scores_PB))]
                places = (known.probe_M[pairs] - first_probe).to(device), (known.item_M[pairs] - start).to(device)
                scores_M[pairs.to(device)] = scores_PB[places]

    together(score)
    max_over_processes(scores_M, default_group())
    if torch.isnan(scores_M).any():
        raise ValueError(f"{int(torch.isnan(scores_M).sum()):,} of {len(scores_M):,} scores are NaN")
    return scores_M


def _products(probes_PD: Tensor, rows_BD: Tensor, only: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield the first probe and the scores (p, B) of each block of probes.

    Args:
        only: probes whose blocks are needed; None for all.
    """
    if rows_BD.shape[-1] != probes_PD.shape[1]:
        raise ValueError(
            f"features of the gallery have {rows_BD.shape[-1]} numbers and those of the probes {probes_PD.shape[1]}; "
            "both must come from one model"
        )
    needed = set((only // PROBES).unique().tolist()) if only is not None else None
    rows_LD = rows_BD.flatten(0, -2)  # as many rows as items, or R times as many
    buffer = probes_PD.new_empty(min(PROBES, len(probes_PD)), len(rows_LD))
    for begin in range(0, len(probes_PD), PROBES):
        if needed is None or begin // PROBES in needed:
            block_PD = probes_PD[begin : begin + PROBES]
            scores_PL = torch.mm(block_PD, rows_LD.T, out=buffer[: len(block_PD)])
            yield begin, scores_PL if rows_BD.ndim == 2 else scores_PL.view(len(block_PD), len(rows_BD), -1).amax(2)


class _Thresholds:
    """Counts of the scores that reach each of some thresholds, which belong to probes."""

    def __init__(self, probe_T: Tensor, threshold_T: Tensor, num_probes: int):
        self.order_T = torch.argsort(_keys(probe_T, threshold_T), stable=True)
        self.probe_T = probe_T[self.order_T]
        self.keys_T = _keys(self.probe_T, threshold_T[self.order_T])
        self.place_T = torch.arange(len(probe_T), device=probe_T.device) - torch.searchsorted(
            self.probe_T, self.probe_T
        )
        # If all probes have few thresholds, they are also kept as a table, with counts of its own.
        width = int(self.place_T.max()) + 1 if len(probe_T) else 0
        self.table_PT = torch.full((num_probes, width if width <= FEW else 0), torch.inf, device=probe_T.device)
        self.reached_PT = torch.zeros_like(self.table_PT, dtype=torch.int64)
        if self.table_PT.numel():
            self.table_PT[self.probe_T, self.place_T] = threshold_T[self.order_T]
        # The number of scores between a threshold and the next of its probe.
        self.between_T = torch.zeros(len(probe_T) + 1, dtype=torch.int64, device=probe_T.device)
        self.lowest_P = torch.full((num_probes,), torch.inf, device=probe_T.device)
        self.lowest_P.scatter_reduce_(0, probe_T, threshold_T, "amin")

    def count(self, begin: int, scores_PB: Tensor) -> None:
        """Count the scores of the probes from `begin` on.

        Usually few scores reach the lowest threshold of their probe, and only those are sorted in.
        """
        rows = slice(begin, begin + len(scores_PB))
        lowest_P = self.lowest_P[rows]
        probes = torch.nonzero(scores_PB.amax(1) >= lowest_P)[:, 0]
        if len(probes) <= len(scores_PB) // 2:  # copying more of them would take longer than it saves
            scores_PB, lowest_P = scores_PB[probes], lowest_P[probes]
        elif self.table_PT.numel():
            for place, threshold_P in enumerate(self.table_PT[rows].unbind(1)):
                self.reached_PT[rows, place] += torch.count_nonzero(scores_PB >= threshold_P[:, None], dim=1)
            return
        else:
            probes = torch.arange(len(scores_PB), device=probes.device)
        probe, item = torch.nonzero(scores_PB >= lowest_P[:, None], as_tuple=True)
        self.add(probes[probe] + begin, scores_PB[probe, item])

    def add(self, probe: Tensor, scores: Tensor) -> None:
        """Count single scores, each of a probe."""
        if len(self.keys_T):
            reach = scores >= self.lowest_P[probe]
            places = torch.searchsorted(self.keys_T, _keys(probe[reach], scores[reach]), right=True)
            self.between_T += torch.bincount(places, minlength=len(self.between_T))

    def counts(self) -> Tensor:
        """Return how many scores reach each threshold, (T,), in the order of the constructor's arguments."""
        # A score below all thresholds of its probe was not counted. So all that were counted between a threshold and
        # the last of its probe reach it.
        behind = self.between_T.flip(0).cumsum(0).flip(0)
        ends = torch.searchsorted(self.probe_T, self.probe_T, right=True)
        counts = torch.empty(len(self.keys_T), dtype=torch.int64, device=behind.device)
        behind = torch.cat([behind, behind.new_zeros(1)])
        counts[self.order_T] = behind[1:-1] - behind[ends + 1]
        if self.table_PT.numel():
            counts[self.order_T] += self.reached_PT[self.probe_T, self.place_T]
        return counts


def _keys(probe: Tensor, score: Tensor) -> Tensor:
    """Return int64 keys that sort by probe and then by score, exactly."""
    bits = (score.float() + 0.0).view(torch.int32).long()  # + 0.0 turns minus zero into zero
    return (probe.long() << 32) + torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
