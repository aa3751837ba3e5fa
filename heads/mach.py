"""MACH: classes are hashed into buckets several times, and each hash has a small softmax over its buckets.

Legend: N batch of all processes, R hashes, B buckets, k classes of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .center_head import CenterHead
from .core import counter_rng
from .core.cost import TooManyClassesError
from .core.options import option, whole
from .group.batch import GlobalBatch, gather_embeddings
from .group.collectives import gather_rows, gather_sizes, rank_and_size
from .group.positives import Positives
from .objectives.blocks import Block, SeparateRows
from .objectives.inputs import LossInputs
from .objectives.rows import MIN_NORM
from .objectives.softmax import chunks
from .objectives.topk import best_of, best_of_processes
from .rows.active import ActiveRows
from .rows.class_rows import ClassRows
from .rows.options import CenterOptions
from .selection.selection import Selection

MOST_BUCKETS = 2**31  # a hash has 32 bits


@dataclass(frozen=True, kw_only=True)
class MACHOptions(CenterOptions):
    """Options of `MACH`."""

    num_buckets: float = option(0.025, "Number of buckets of each hash, B, or their share of C if it is below 1.")
    num_hashes: int = option(4, "Number of independent hashes, R. The head stores R x B rows.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_hashes", whole("num_hashes", self.num_hashes, 1))

    def buckets(self, num_classes: int) -> int:
        """Return the number of buckets of each hash.

        Raises:
            ValueError: `num_buckets` does not fit the number of classes.
            TooManyClassesError: a share of so many classes is more than a hash can tell apart.
        """
        given = self.num_buckets
        count = round(given * num_classes) if 0 < given < 1 else given
        if count > MOST_BUCKETS:
            raise TooManyClassesError(
                f"num_buckets={given} of num_classes={num_classes:,} is more than {MOST_BUCKETS:,}, the values of a "
                "hash; use fewer buckets"
            )
        if not (count == int(count) and 2 <= count <= num_classes):
            raise ValueError(
                f"num_buckets={given} of num_classes={num_classes} must be a whole number of buckets from 2 to "
                f"{num_classes}, or a share of the classes that gives as many"
            )
        return int(count)


class MACH(CenterHead):
    """R margin softmaxes over B buckets each, to which independent hashes assign the classes.

    The loss is the mean over the hashes. The score of a class is the mean probability of its buckets. Memory and time
    grow with R x B instead of C: two classes are told apart by any hash that gives them different buckets.

    The head maps embeddings (n, D) and labels (n,) to a loss. Its rows learn from an optimizer of their own::

        head = MACH(num_classes=1_000_000, embedding_size=512, num_buckets=10_000, num_hashes=8)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels).backward()
        rows.step()

    Source: Medini et al., "Extreme Classification in Log Memory using Count-Min Sketch: A Case Study of Amazon Search
    with 50M Products", NeurIPS 2019. The paper trains a network for each hash; here all share the embedding.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range, or the margin depends on class counts.

    Examples:
        >>> head = MACH(num_classes=10**8, embedding_size=16, num_hashes=4, num_buckets=500)
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    Options = MACHOptions
    options: MACHOptions

    def __init__(self, num_classes: int, embedding_size: int, **options: Any):
        super().__init__(num_classes, embedding_size, **options)
        if self.margin.uses_class_counts:
            raise ValueError(
                f"margin={type(self.margin).__name__} depends on the images of a class, and a bucket of MACH holds "
                "several classes; use another margin, such as CosFace"
            )

    @classmethod
    def loss_classes(cls, num_classes: int, options: Any) -> int:
        buckets: int = options.buckets(num_classes)
        return buckets

    @classmethod
    def block_of(cls, options: Any) -> Block:
        return SeparateRows(options.num_hashes)

    @property
    def class_centers(self) -> ClassRows | None:
        """No rows: each stands for all classes of a bucket."""
        return None

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        return Selection()

    def buckets_of(self, classes: Tensor) -> Tensor:
        """Return the bucket of each class (k,) by each hash, int64 (k, R). It depends on class and seed only."""
        hashes = counter_rng.uniform16(classes, 2 * self.options.num_hashes, "buckets", self.options.seed)
        high, low = hashes.to(torch.int64).view(len(classes), -1, 2).unbind(2)
        return ((high & 0xFFFF) << 16 | (low & 0xFFFF)) % self.centers.shard.num_classes

    def in_loss_classes(self, batch: GlobalBatch) -> GlobalBatch:
        """Return a batch in which each sample has a bucket by each hash as its classes.

        Raises:
            ValueError: samples have several labels.
        """
        if batch.positives.sample_P is not None:
            raise ValueError(
                "labels have several classes a sample, and MACH hashes one; pass labels of shape (n,), or use a head "
                "with a row for each class, such as FullFC"
            )
        buckets_NR = self.buckets_of(batch.positives.labels_P)
        samples_N = torch.arange(len(buckets_NR), device=buckets_NR.device)
        samples_P = samples_N.repeat_interleave(self.options.num_hashes)
        return replace(batch, positives=Positives(buckets_NR.flatten(), samples_P))

    def loss_inputs(self, batch: GlobalBatch, selection: Selection, rows: ActiveRows) -> LossInputs:
        """Return the inputs of a loss with R samples of each embedding; see `SeparateRows`."""
        hashes = self.options.num_hashes
        batch = replace(
            batch,
            positives=Positives(batch.positives.labels_P.view(-1, hashes).T.flatten()),
            weight_N=batch.weight_N.repeat(hashes),
            norm_N=batch.norm_N.repeat(hashes),
        )
        return super().loss_inputs(batch, selection, rows)

    @torch.no_grad()
    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k classes with the highest mean probability of their buckets.

        It compares all classes, and needs memory for the probabilities of all buckets, N x R x B numbers.

        Args:
            embeddings: (n, D) of this process; n may differ between processes.
            k: between 1 and C.

        Returns:
            Mean probabilities, highest first, and class ids, both (n, k).

        Raises:
            ValueError: k is out of range, or embeddings have a wrong shape, dtype or device.
        """
        self.check_group()
        if (k := whole("k", k, 1)) > self.num_classes:
            raise ValueError(f"k={k} must be between 1 and the number of classes, {self.num_classes}")
        device, group = self.centers.like.device, self.process_group
        with torch.autocast(device.type, enabled=False):
            x_ND, sizes = gather_embeddings(
                embeddings, self.to_rows_space, embedding_size=self.embedding_size, device=device, group=group
            )
            probability_BRN = self._probabilities(x_ND)
            rank, world_size = rank_and_size(group)
            start, stop = (self.num_classes * part // world_size for part in (rank, rank + 1))
            values, classes = best_of(self._class_scores(probability_BRN, start, stop), k, x_ND)
            return best_of_processes(values, classes, k, sizes, group)

    def _probabilities(self, x_ND: Tensor) -> Tensor:
        """Return the probabilities of all buckets of all processes (B, R, N)."""
        rows, R = ActiveRows(self.centers, Selection(), keep=False), self.options.num_hashes
        logit_BRN = x_ND.new_empty(len(rows), R, len(x_ND))
        for a, b in chunks(len(rows)):
            rows_lD = rows.slice(a, b)[:, : x_ND.shape[1]]  # without the bias of an objective
            if self.margin.normalize:
                rows_lD = torch.nn.functional.normalize(rows_lD, eps=MIN_NORM)
            logit_BRN[a:b] = (rows_lD @ x_ND.T).view(b - a, R, -1)
        logit_BRN *= self.margin.at(self.step).scale(self.centers.shard.num_classes)
        sizes = gather_sizes(len(logit_BRN), logit_BRN.device, self.process_group)
        return gather_rows(logit_BRN, sizes, self.process_group).softmax(0)

    def _class_scores(self, probability_BRN: Tensor, start: int, stop: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Yield the mean probabilities (N, k) of chunks of the classes `start` to `stop`."""
        hashes = torch.arange(self.options.num_hashes, device=probability_BRN.device)
        for a, b in chunks(stop - start):
            a, b = a + start, b + start
            buckets_kR = self.buckets_of(torch.arange(a, b, device=probability_BRN.device))
            yield (a, b), probability_BRN[buckets_kR, hashes].mean(1).T

    def extra_repr(self) -> str:
        return f"num_hashes={self.options.num_hashes}, {super().extra_repr()}"
