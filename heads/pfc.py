"""PartialFC: positives and a uniform sample of the negatives."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .center_head import CenterHead
from .core import counter_rng
from .core.options import number, option, whole
from .core.schedule import Schedule, plain, value_at, values_of
from .rows.options import CenterOptions, LossOptions
from .selection.sampling import filled, filled_by_blocks
from .selection.selection import Selection


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(LossOptions):
    """Options of a uniform sample of the classes."""

    sample_rate: Schedule = option(
        0.1,
        "Share of the classes, in (0, 1], that take part in a step: max(1, round(sample_rate x classes)) per process. "
        "Positives always take part, even if there are more of them. 1 is the full head. Or {step: share} to change it "
        "from each step on.",
    )
    log_q: bool = option(
        False,
        "Subtract from each negative's logit the log of the probability with which it was drawn. The sampled "
        "denominator is then an unbiased estimate of the full one. The published PartialFC does not.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sample_rate", plain("sample_rate", self.sample_rate))
        for rate in values_of(self.sample_rate):
            if not 0 < number("sample_rate", rate) <= 1:
                raise ValueError(f"sample_rate={rate} must be in (0, 1]; 0.1 samples a tenth of the classes")


@dataclass(frozen=True, kw_only=True)
class PartialFCOptions(SamplingOptions, CenterOptions):
    """Options of `PartialFC`."""

    sample_block: int = option(
        1,
        "Classes that are drawn together, because their rows are adjacent in memory or in a file. 16 rows make up "
        "whole pages of a file; 2048, or a multiple, are used in place in memory. Each class is drawn with the same "
        "probability as with 1. Above 1, rows are stored in a pseudo-random order of the classes, so that those drawn "
        "together are unrelated.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sample_block", whole("sample_block", self.sample_block, 1))


class PartialFC(CenterHead):
    """Margin softmax over the positives of each shard and uniform negatives, drawn without replacement.

    The head maps embeddings (n, D) and labels (n,) to a loss. Its rows learn from an optimizer of their own::

        head = PartialFC(num_classes=1_000_000, embedding_size=512, sample_rate=0.1)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels).backward()
        rows.step()

    Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by
    Partial FC", CVPR 2022.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range.

    Examples:
        >>> head = PartialFC(num_classes=1000, embedding_size=16, sample_rate=0.1, margin=CosFace(s=16, m=0.2))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
        >>> int(head.stats()["active_classes"])
        100
    """

    Options: ClassVar[type[SamplingOptions]] = PartialFCOptions

    def __init__(self, num_classes: int, embedding_size: int, **options: Any):
        super().__init__(num_classes, embedding_size, **options)
        shard, block = self.centers.shard, getattr(self.options, "sample_block", 1)
        smallest = shard.num_classes - (shard.world_size - 1) * shard.chunk  # classes of the last process
        for rate in values_of(self.options.sample_rate):
            if rate < 1 and (quota := max(1, round(rate * smallest))) < block:
                raise ValueError(
                    f"sample_block={block} must be at most the number of classes that each process samples, {quota} "
                    f"with sample_rate={rate}; use smaller blocks"
                )

    @classmethod
    def active_shares(cls, num_classes: int, options: Any) -> list[float]:
        return [float(rate) for rate in values_of(options.sample_rate)]

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        rate = value_at(self.options.sample_rate, self.step)
        if rate == 1:
            return Selection()
        shard = self.centers.shard
        local = shard.local(labels)
        positives = torch.unique(local[local >= 0])
        quota = max(1, round(rate * shard.size))
        log_q, block = embeddings if self.options.log_q else None, getattr(self.options, "sample_block", 1)
        key = (self.options.seed, self.step, self.micro_batch, shard.start)
        generator = counter_rng.generator("selection", *key, device=labels.device if block == 1 else "cpu")
        if block == 1:
            return filled(positives, shard.size, quota, generator, log_q=log_q)
        return filled_by_blocks(positives, shard.size, quota, block, generator, log_q=log_q)

    def extra_repr(self) -> str:
        return f"sample_rate={self.options.sample_rate}, log_q={self.options.log_q}, {super().extra_repr()}"
