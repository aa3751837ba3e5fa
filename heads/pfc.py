"""PartialFC: positives and a uniform sample of the negatives (An et al., CVPR 2022)."""

from typing import Any, Unpack

import torch
from torch import Tensor

from .core import counter_rng
from .core.cost import Case, Cost
from .core.options import number
from .head import CenterHead, CenterOptions, Selection
from .selection.sampling import filled


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
        self,
        num_classes: int,
        embedding_size: int,
        *,
        sample_rate: float = 0.1,
        log_q: bool = False,
        **options: Unpack[CenterOptions],
    ):
        check_rate(sample_rate)
        super().__init__(num_classes, embedding_size, **options)
        self.sample_rate = sample_rate
        self.log_q = log_q

    @classmethod
    def cost(cls, case: Case, *, sample_rate: float = 0.1, **options: Any) -> Cost:
        check_rate(sample_rate)
        active = max(1, round(sample_rate * case.shard)) if sample_rate < 1 else None
        return super().cost(case, active=active, **options)

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        if self.sample_rate == 1:
            return Selection()
        shard = self.centers.shard
        local = shard.local(labels)
        positives = torch.unique(local[local >= 0])
        quota = max(1, round(self.sample_rate * shard.size))
        generator = counter_rng.generator(
            "selection", self.seed, self.step, self.micro_batch, shard.start, device=labels.device
        )
        return filled(positives, shard.size, quota, generator, log_q=embeddings if self.log_q else None)

    def extra_repr(self) -> str:
        return f"sample_rate={self.sample_rate}, log_q={self.log_q}, {super().extra_repr()}"


def check_rate(sample_rate: float) -> None:
    if not 0 < number("sample_rate", sample_rate) <= 1:
        raise ValueError(f"sample_rate={sample_rate}: must lie in (0, 1]; 0.1 samples a tenth of the classes")
