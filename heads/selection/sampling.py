"""Uniform classes to fill a selection up."""

import torch
from torch import Tensor

from .selection import Selection


def filled(
    chosen: Tensor, num_classes: int, quota: int, generator: torch.Generator, *, log_q: Tensor | None
) -> Selection:
    """`chosen` and uniform draws, without replacement, from the other classes up to `quota`.

    Args:
        chosen: int64, sorted, without duplicates; all kept, also if more than `quota`.
        num_classes: to draw from, chosen ones included.
        log_q: a tensor like which the log of the probability that a class was drawn is made, 0 for the chosen; None
            for none.
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


def sample_without_replacement(population: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct numbers below `population`, every subset equally likely, in O(count) expected.

    Draws with replacement and keeps the distinct numbers; of those above `count` a uniform choice is
    dropped. Both steps treat all numbers alike, hence so does the result.
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
