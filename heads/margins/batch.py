"""The data of a forward pass that a margin may read, in addition to cosines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import counter_rng


@dataclass(frozen=True)
class MarginBatch:
    """The batch of all processes, as `Margin.begin` gets it; the same on every process.

    With several labels a sample, N counts the pairs of a sample and one of its classes.

    Attributes:
        norm_N: (N,) lengths of the embeddings before they are scaled to unit length, detached.
        labels_N: (N,) int64 class ids.
        num_classes: C, the number of classes of the loss.
        state: the numbers of `Margin.initial_state` as of the last optimizer step, scalar tensors.
        key: seed, step and micro-batch, from which random draws follow.
        class_counts_N: (N,) number of training examples of each sample's class; None unless the margin needs them.
        several_norms: the lengths, once for each sample, where samples have several labels; else None.
    """

    norm_N: Tensor
    labels_N: Tensor
    num_classes: int
    state: Mapping[str, Tensor]
    key: tuple[int, ...]
    class_counts_N: Tensor | None = None
    several_norms: Tensor | None = None

    @property
    def sample_norms(self) -> Tensor:
        """The lengths, once for each sample."""
        return self.norm_N if self.several_norms is None else self.several_norms

    def chosen(self, places: Tensor) -> "MarginBatch":
        """Return some samples."""
        counts_N = self.class_counts_N
        return replace(
            self,
            norm_N=self.norm_N[places],
            labels_N=self.labels_N[places],
            class_counts_N=None if counts_N is None else counts_N[places],
        )

    def normal(self, purpose: str) -> Tensor:
        """Draw standard normal numbers (N,) from `key`, with the dtype and device of the lengths."""
        generator = counter_rng.generator(purpose, *self.key, device=self.norm_N.device)
        return torch.randn(len(self.norm_N), generator=generator, dtype=self.norm_N.dtype, device=self.norm_N.device)
