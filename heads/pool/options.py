"""Options of FFC."""

from dataclasses import dataclass

import torch

from ..core import dtypes
from ..core.options import number, option, whole
from ..margins.class_counts import ClassCounts
from ..margins.margin import Margin, checked_margin

PUBLISHED_MOMENTUM = 0.99  # constant of the published code


@dataclass(frozen=True, kw_only=True)
class FFCOptions:
    """Options of `FFC`."""

    queue_size: float = option(0.1, "Number of classes in the pool, or their share of C if it is below 1.")
    margin: Margin | None = option(None, "A margin that normalizes. None for CosFace(s=32, m=0.4).")
    class_counts: ClassCounts = option(
        None, "Number of training examples of each class, (C,), for margins that depend on it, such as ClassMargin."
    )
    gallery_momentum: float | None = option(
        None,
        "Momentum, in [0, 1], of the copy of the backbone that fills the pool; the copy is updated once per step. None "
        "for min(0.99, (1 + step) / (10 + step)), which grows to the constant of the published code.",
    )
    outlier_weight: float = option(
        1.0,
        "Weight of the term for probes whose class is not in the pool: the mean of their k highest cosines, where "
        "negative cosines count as 0. k is 2 in 10,000 of the slots, at least 3 and at most 10.",
    )
    identity_share: float = option(
        0.5, "Share of a batch's images, in (0, 1), that come as pairs of one class; 2/3 in the published code."
    )
    mask_unfilled: bool = option(
        True,
        "Leave out slots that hold no class yet. False fills them with random directions, which act as negatives, as "
        "the published code does.",
    )
    seed: int = option(0, "Seed of these random directions.")
    dtype: torch.dtype | str = option("fp32", 'Dtype of the stored features: "fp32" or "bf16".')

    def __post_init__(self) -> None:
        if self.margin is not None:
            checked_pool_margin(self.margin)
        if self.gallery_momentum is not None and not 0 <= number("gallery_momentum", self.gallery_momentum) <= 1:
            raise ValueError(f"gallery_momentum={self.gallery_momentum} must be in [0, 1]; null grows with the step")
        number("outlier_weight", self.outlier_weight, least=0)
        if not 0 < number("identity_share", self.identity_share) < 1:
            raise ValueError(
                f"identity_share={self.identity_share} must be between 0 and 1; 0.5 pairs half of the images"
            )
        dtypes.named("dtype", self.dtype)
        object.__setattr__(self, "seed", whole("seed", self.seed, 0))

    def momentum(self, step: int) -> float:
        """Return the momentum of the copy of the backbone in a step.

        A copy with a constant momentum of 0.99 is about 100 steps behind the backbone. Early in training its features
        then come from a backbone that has learned little. Without a constant, the copy lags
        by a ninth of the steps so far, and by at most 100 steps.
        """
        if self.gallery_momentum is not None:
            return self.gallery_momentum
        return min(PUBLISHED_MOMENTUM, (1 + step) / (10 + step))

    def slots(self, num_classes: int) -> int:
        """Return the number of slots of the pool.

        Raises:
            ValueError: `queue_size` does not fit the number of classes.
        """
        queue_size = self.queue_size
        capacity = round(queue_size * num_classes) if 0 < queue_size < 1 else queue_size
        if capacity == 0 < queue_size:
            raise ValueError(
                f"queue_size={queue_size} of num_classes={num_classes} is less than one class; give the number of "
                f"classes, up to {num_classes}, or a larger share"
            )
        if not (capacity >= 1 and capacity == int(capacity) and capacity <= num_classes):
            raise ValueError(
                f"queue_size={queue_size} must be a whole number of classes up to num_classes={num_classes}, or a "
                "share of them below 1"
            )
        return int(capacity)


def checked_pool_margin(margin: object) -> Margin:
    """Return the margin, or raise a ValueError if it is none that FFC can use."""
    if not checked_margin(margin).normalize:
        raise ValueError(f"margin={margin} cannot be used: FFC compares directions; use a margin that normalizes")
    if checked_margin(margin).needs_whole_batch:
        raise ValueError(
            f"margin={margin} needs the lengths or cosines of the whole batch, and FFC compares the images of each "
            "process on their own; use another margin, or a head with class centers (full, pfc, forest)"
        )
    return checked_margin(margin)
