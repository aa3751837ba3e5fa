"""PartialFC: positives and a uniform sample of the negatives (An et al., CVPR 2022)."""

from typing import Any

import torch
from torch import Tensor

from . import keyed
from .head import CenterHead, Selection


class PartialFC(CenterHead):
    """The margin softmax over this shard's positives and uniform negatives without replacement.

    Args:
        sample_rate: share of the classes, in (0, 1], that take part in a step; max(1, round(rate x
            classes)) of each process. Positives are always among them, also when they are more. 1 is
            the full head.
        log_q: subtract the log of the probability with which a negative was drawn from its logit, which
            makes the sampled denominator an unbiased estimate of the full one. PartialFC does not.
        options: of `CenterHead`.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, *, sample_rate: float = 0.1, log_q: bool = False, **options: Any
    ):
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate={sample_rate}: must lie in (0, 1]; 0.1 samples a tenth of the classes")
        super().__init__(num_classes, embedding_size, **options)
        self.sample_rate = sample_rate
        self.log_q = log_q

    def select(self, embeddings: Tensor, labels: Tensor) -> Selection:
        if self.sample_rate == 1:
            return Selection()
        shard = self.centers.shard
        local = shard.local(labels)
        positives = torch.unique(local[local >= 0])
        quota = max(1, round(self.sample_rate * shard.size))
        eligible = shard.size - len(positives)
        drawn = min(max(quota - len(positives), 0), eligible)
        generator = keyed.generator(
            "selection", self.seed, self.step, self.micro_batch, shard.start, device=labels.device
        )
        # The j-th class that is no positive is j plus the number of positives before it.
        negatives = sample_without_replacement(eligible, drawn, generator)
        before = positives - torch.arange(len(positives), device=positives.device)
        negatives += torch.searchsorted(before, negatives, right=True)
        ids, order = torch.sort(torch.cat([positives, negatives]))
        if not self.log_q:
            return Selection(ids)
        log_q = embeddings.new_zeros(len(ids))
        log_q[order >= len(positives)] = torch.log(log_q.new_tensor(drawn / max(eligible, 1)))
        return Selection(ids, log_q)

    def extra_repr(self) -> str:
        return f"sample_rate={self.sample_rate}, log_q={self.log_q}, {super().extra_repr()}"


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
