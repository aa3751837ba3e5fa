"""Counts of a step's active classes and negatives."""

import torch
from torch import Tensor

from ..core.warn import warn_user
from ..group.sharding import Shard


class SelectionCounts:
    """Numbers of active classes and of negatives of this process in the last step: `last`.

    The first step without any negative issues a warning.
    """

    def __init__(self) -> None:
        self.last = {"active_classes": 0, "sampled_negatives": 0}
        self._has_warned = False

    def record(self, num_active: int, labels_N: Tensor, shard: Shard, step: int) -> None:
        """Count a training forward with `num_active` rows of the shard."""
        local_N = shard.local(labels_N)
        negatives = num_active - len(torch.unique(local_N[local_N >= 0]))
        self.last = {"active_classes": num_active, "sampled_negatives": negatives}
        if negatives == 0 and num_active < shard.size and not self._has_warned:
            self._has_warned = True
            warn_user(
                f"step {step}: the {num_active} active classes of this process are those of the batch, so that the "
                "loss has no other negatives; raise sample_rate (or num_active), use a smaller batch, or take head=full"
            )
