"""Uniform sampling of classes."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..group.sharding import positions
from .selection import Selection


def filled(
    chosen: Tensor, num_classes: int, quota: int, generator: torch.Generator, *, log_q: Tensor | None
) -> Selection:
    """Complete a selection with uniform draws, without replacement, from the classes that are not chosen.

    Args:
        chosen: int64, sorted, without duplicates; all are kept, also if there are more than `quota`.
        num_classes: number of classes, including the chosen ones.
        quota: number of classes to select.
        generator: source of the draws.
        log_q: a tensor whose dtype and device `Selection.log_q` gets: the log of the probability that a class was
            drawn, 0 for chosen classes. None for no `log_q`.
    """
    eligible = num_classes - len(chosen)
    drawn = min(max(quota - len(chosen), 0), eligible)
    # The j-th class that is not chosen is j plus the number of chosen ones before it.
    others = sample_without_replacement(eligible, drawn, generator)
    before = chosen - torch.arange(len(chosen), device=chosen.device)
    others += torch.searchsorted(before, others, right=True)
    ids, order = torch.sort(torch.cat([chosen, others]))
    if log_q is None:
        return Selection(ids)
    log_q = log_q.new_zeros(len(ids))
    log_q[order >= len(chosen)] = torch.log(log_q.new_tensor(drawn / max(eligible, 1)))
    return Selection(ids, log_q)


def filled_by_blocks(
    chosen: Tensor, num_classes: int, quota: int, block: int, generator: torch.Generator, *, log_q: Tensor | None
) -> Selection:
    """Complete a selection with blocks of adjacent classes, drawn uniformly without replacement.

    Each class that is not chosen is drawn with the probability that `filled` draws it with. The number of blocks is
    therefore random: one of the two whole numbers around its mean. A chosen class brings no block.

    Args:
        chosen, num_classes, quota, log_q: as in `filled`.
        block: classes of a block; the last block may have fewer.
        generator: source of the draws, on the host: a step uses blocks in place only if the host knows them.
    """
    eligible, device = num_classes - len(chosen), chosen.device
    share = min(max(quota - len(chosen), 0) / max(eligible, 1), 1.0)
    num_blocks = -(-num_classes // block)
    mean = share * num_blocks
    extra = torch.rand((), generator=generator, dtype=torch.float64) < mean - int(mean)
    drawn = sample_without_replacement(num_blocks, int(mean) + int(extra), generator).sort().values
    starts = drawn[drawn < num_classes // block] * block
    in_blocks = (starts.to(device)[:, None] + torch.arange(block, device=device)).flatten()
    alone = chosen[positions(drawn.to(device), chosen // block) < 0]
    if len(starts) < len(drawn):  # the last block, which is smaller
        alone = torch.cat([alone, torch.arange(num_classes // block * block, num_classes, device=device)])
    selection = Selection(torch.cat([in_blocks, alone.sort().values]), block=block, starts=starts)
    if log_q is None or selection.ids is None:
        return selection
    log_q = torch.full_like(selection.ids, math.log(share) if share else 0.0, dtype=log_q.dtype)
    log_q[selection.find(chosen)] = 0
    return replace(selection, log_q=log_q)


def sample_without_replacement(population: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct numbers below `population`, every subset equally likely, in O(count) expected time.

    The function draws with replacement, keeps the distinct numbers, and drops a uniform choice of the surplus. Both
    steps treat all numbers equally, so every subset is equally likely.
    """
    device = generator.device
    if count * 3 > population:
        return torch.randperm(population, generator=generator, device=device)[:count]
    distinct = torch.empty(0, dtype=torch.int64, device=device)
    while (missing := count - len(distinct)) > 0:
        num_draws = int(1.3 * missing) + 8
        draws = torch.randint(population, (num_draws,), generator=generator, device=device)
        distinct = torch.unique(torch.cat([distinct, draws]))
    surplus = len(distinct) - count
    keep = torch.ones(len(distinct), dtype=torch.bool, device=device)
    keep[torch.randperm(len(distinct), generator=generator, device=device)[:surplus]] = False
    return distinct[keep]
