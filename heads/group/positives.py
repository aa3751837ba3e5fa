"""The positives of a batch: pairs of a sample and a class that it belongs to.

With one label a sample, pair i is sample i. With several, a sample has a pair for each of its classes. Some pairs are
targets of the loss; the other classes of a sample are left out of its negatives.

Legend: N samples of all processes, L labels of a sample, P targets, M pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import counter_rng
from .sharding import Shard


@dataclass(frozen=True)
class Positives:
    """Pairs of samples and classes, sorted by sample; the same on all processes.

    Attributes:
        labels_P: int64 (P,) classes of the targets.
        sample_P: int64 (P,) their samples; None if pair i is sample i, so that P = N.
        labels_M, sample_M: all pairs; None if all are targets.
    """

    labels_P: Tensor
    sample_P: Tensor | None = None
    labels_M: Tensor | None = None
    sample_M: Tensor | None = None

    @property
    def all_labels(self) -> Tensor:
        """Classes of all pairs."""
        return self.labels_P if self.labels_M is None else self.labels_M

    @property
    def all_samples(self) -> Tensor | None:
        """Samples of all pairs; None if pair i is sample i."""
        return self.sample_P if self.sample_M is None else self.sample_M

    def of_samples(self, values_N: Tensor) -> Tensor:
        """Return a value of each sample for each target, (P, ...)."""
        return values_N if self.sample_P is None else values_N[self.sample_P]

    def summed(self, values_P: Tensor, num_samples: int) -> Tensor:
        """Return the sum over the targets of each sample, (N,)."""
        if self.sample_P is None:
            return values_P
        return values_P.new_zeros(num_samples).index_add_(0, self.sample_P, values_P)

    def among(self, local_NK: Tensor, shard: Shard) -> Tensor:
        """Return which rows of a shard (N, K) are classes of their sample, bool (N, K)."""
        own_M, samples = shard.local(self.all_labels), self.all_samples
        if samples is None:
            return local_NK == own_M[:, None]
        hits_MK = (local_NK[samples] == own_M[:, None]).to(torch.int32)
        return torch.zeros_like(local_NK, dtype=torch.int32).index_add_(0, samples, hits_MK) > 0

    def with_classes(self, classes_of: Callable[[Tensor], Tensor]) -> "Positives":
        """Return the pairs with other numbers of their classes."""
        labels_M = None if self.labels_M is None else classes_of(self.labels_M)
        return Positives(classes_of(self.labels_P), self.sample_P, labels_M, self.sample_M)

    def without_target(self, label: int) -> "Positives":
        """Return the pairs with this class among no targets. Every sample must have another class."""
        if self.sample_P is None:
            return self
        kept_P = self.labels_P != label
        return Positives(self.labels_P[kept_P], self.sample_P[kept_P], self.all_labels, self.all_samples)

    def chosen(self, places: list[int], num_samples: int) -> "Positives":
        """Return the pairs of some samples, whose numbers become 0, 1, ..."""
        if self.sample_P is None:
            return Positives(self.labels_P[places])
        new_N = self.sample_P.new_full((num_samples,), -1)
        new_N[places] = torch.arange(len(places), device=new_N.device)
        keep_P, parts = new_N[self.sample_P] >= 0, []
        parts += [self.labels_P[keep_P], new_N[self.sample_P[keep_P]]]
        if self.labels_M is not None and self.sample_M is not None:
            keep_M = new_N[self.sample_M] >= 0
            parts += [self.labels_M[keep_M], new_N[self.sample_M[keep_M]]]
        return Positives(*parts)


def positives_of(labels: Tensor) -> Positives:
    """Return the pairs of labels (N,), or of labels (N, L) padded with -1, in which a class may be repeated."""
    if labels.ndim == 1:
        return Positives(labels)
    sorted_NL = labels.sort(dim=1).values
    distinct_NL = sorted_NL != -1
    distinct_NL[:, 1:] &= sorted_NL[:, 1:] != sorted_NL[:, :-1]
    sample_P, place_P = distinct_NL.nonzero(as_tuple=True)
    labels_P = sorted_NL[sample_P, place_P]
    if len(labels_P) == len(labels) and bool(distinct_NL.any(dim=1).all()):  # one label a sample
        return Positives(labels_P)
    return Positives(labels_P, sample_P)


def draw(positives: Positives, count: int, num_samples: int, key: tuple[int, ...]) -> Positives:
    """Return `count` targets of each sample, drawn without replacement; all of a sample that has fewer.

    The other pairs stay, so that they are no negatives of their sample.

    Args:
        positives: pairs, all of them targets.
        count: targets of a sample.
        num_samples: N.
        key: key of the draw.
    """
    sample_P = positives.sample_P
    if sample_P is None:
        return positives
    generator = counter_rng.generator("positives", *key, device=sample_P.device)
    order = torch.rand(len(sample_P), generator=generator, device=sample_P.device).argsort()
    order = order[sample_P[order].argsort(stable=True)]  # by sample, in random order within a sample
    per_sample = torch.bincount(sample_P, minlength=num_samples)
    first_N = per_sample.cumsum(0) - per_sample
    rank = torch.arange(len(order), device=order.device) - first_N[sample_P[order]]
    kept = order[rank < count].sort().values
    return Positives(positives.labels_P[kept], sample_P[kept], positives.all_labels, positives.all_samples)
