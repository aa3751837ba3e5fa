"""Virtual FC: a few anchors stand for all classes, each for another class in every step.

Legend: N batch of all processes, U classes of it, M anchors, D embedding.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .center_head import CenterHead
from .core import counter_rng
from .core.options import number, option, whole
from .group.batch import SHORTEST, GlobalBatch
from .group.positives import Positives
from .margins.arcface import ArcFace
from .objectives.inputs import LossInputs
from .rows.active import ActiveRows
from .rows.class_rows import ClassRows
from .rows.options import CenterOptions
from .rows.overlay import Overlay
from .selection.sampling import sample_without_replacement
from .selection.selection import Selection

FEWEST_ANCHORS = 64  # of a share of few classes


@dataclass(frozen=True, kw_only=True)
class VirtualFCOptions(CenterOptions):
    """Options of `VirtualFC`."""

    num_anchors: float = option(
        0.1,
        "Number of anchors, M, or if it is below 1 their share of C, at least 64 or C; 0.012 as published.",
    )
    anchor_length: float | None = option(
        0.1,
        "Length of the row that a class writes, at least 0.001. None for that of the sum of its embeddings, as "
        "published: such a long row hardly follows its gradient.",
    )
    images_per_class: int = option(4, "Images of a class in a batch, at least 2; 10 in the published code.")

    def __post_init__(self) -> None:
        if self.margin is None:
            object.__setattr__(self, "margin", ArcFace(s=32))
        super().__post_init__()
        if self.anchor_length is not None:
            number("anchor_length", self.anchor_length, least=1e-3)
        object.__setattr__(self, "images_per_class", whole("images_per_class", self.images_per_class, 2))

    def anchors(self, num_classes: int) -> int:
        """Return the number of anchors.

        Raises:
            ValueError: `num_anchors` does not fit the number of classes.
        """
        given = self.num_anchors
        # Few anchors do not hold the classes of a batch.
        count = min(max(round(given * num_classes), FEWEST_ANCHORS), num_classes) if 0 < given < 1 else given
        if not (count == int(count) and 1 <= count <= num_classes):
            raise ValueError(
                f"num_anchors={given} of num_classes={num_classes} must be a whole number of anchors from 1 to "
                f"{num_classes}, or a share of the classes that gives as many"
            )
        return int(count)


@dataclass(frozen=True, kw_only=True)
class AnchoredPositives(Positives):
    """The anchors of the samples in place of their classes.

    Attributes:
        anchor_U: int64, the anchor of each class of the batch, all different.
        lent_U: bool, whether it is the anchor of another class, which is not in the batch.
        sum_UD: the sum of the embeddings of each class, at the length of an anchor; 0 for one without direction.
    """

    anchor_U: Tensor
    lent_U: Tensor
    sum_UD: Tensor


class VirtualFC(CenterHead):
    """Margin softmax over M anchors. Each anchor belongs to the classes with the same class id modulo M.

    In each step, every class of the batch writes the sum of its embeddings into its anchor, and the embeddings get no
    gradient through it. The optimizer's step then starts from this value, so that the anchor keeps it as a negative of
    later steps. Where two classes of a batch belong to one anchor, the first one takes it. The other one uses an anchor
    without a class in the batch, drawn at random, which has its former row and row state again after the step.

    Memory and time do not depend on C. Batches need several images of a class: an embedding that is the only one of its
    class has the cosine 1 with its anchor. The head maps embeddings (n, D) and labels (n,) to a loss::

        head = VirtualFC(num_classes=1_000_000, embedding_size=512, num_anchors=10_000)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels).backward()
        rows.step()

    Source: Li et al., "Virtual Fully-Connected Layer: Training a Large-Scale Face Recognition Dataset With Limited
    Computational Resources", CVPR 2021. Differences from the published code: it takes free anchors in ascending order,
    so that the same few lend their place in every step, and their momentum receives gradients of other classes. It
    writes in forward, so that a skipped step and an evaluation change anchors too. Here the optimizer's step writes.
    With several micro-batches, an anchor has the value of the last one that wrote it, with the gradient by this value
    alone. Rows have the length `anchor_length`. As long as the sums they hardly move, and embeddings then leave all of
    them in one direction: rank-1 of held-out classes of data=sphere was 0.69 after 120 steps instead of 0.86. The
    published training has a second, ordinary loss. Weights of samples weight the loss, not the sums. A class whose sum
    is shorter than 1e-6 writes nothing.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range, or the margin or the objective needs rows of classes.

    Examples:
        >>> head = VirtualFC(num_classes=10**8, embedding_size=16, num_anchors=1000)
        >>> labels = torch.arange(4).repeat_interleave(2)  # two images of each class
        >>> loss = head(torch.randn(8, 16, requires_grad=True), labels)
    """

    Options = VirtualFCOptions
    options: VirtualFCOptions
    streams = ("identity",)

    def __init__(self, num_classes: int, embedding_size: int, **options: Any):
        super().__init__(num_classes, embedding_size, **options)
        for given, reason in (
            (f"margin={self.margin}", "has a bias for each class" if not self.margin.normalize else ""),
            (f"margin={self.margin}", "depends on class counts" if self.margin.uses_class_counts else ""),
            (f"objective={self.objective}", "has a bias for each class" if self.objective.bias == "class" else ""),
        ):
            if reason:
                raise ValueError(
                    f"{given} {reason}, and an anchor of VirtualFC stands for several classes; use another one, such "
                    "as ArcFace and CrossEntropy"
                )

    @classmethod
    def loss_classes(cls, num_classes: int, options: Any) -> int:
        anchors: int = options.anchors(num_classes)
        return anchors

    @property
    def class_centers(self) -> ClassRows | None:
        """No rows: an anchor stands for many classes."""
        return None

    def check_fidelity(self) -> None:
        raise ValueError(
            "VirtualFC compares images with anchors that are made of the batch, and uses all of them in each step, so "
            "that its fidelity to a softmax over classes is not defined; set fidelity.interval=null"
        )

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        return Selection()

    def in_loss_classes(self, batch: GlobalBatch) -> GlobalBatch:
        """Return the batch with `AnchoredPositives`.

        Raises:
            ValueError: samples have several labels, or the batch has more classes than there are anchors.
        """
        if batch.positives.sample_P is not None:
            raise ValueError(
                "labels have several classes a sample, and VirtualFC has one anchor for a sample; pass labels of shape "
                "(n,), or use a head with a row for each class, such as FullFC"
            )
        class_U, of_sample_N = torch.unique(batch.positives.labels_P, return_inverse=True)
        anchor_U, lent_U = self.anchors_of(class_U, of_sample_N)
        member_UN = of_sample_N == torch.arange(len(class_U), device=class_U.device)[:, None]
        # A product of matrices, because the order of its sums does not vary from run to run.
        sum_UD = member_UN.to(batch.x_ND) @ (batch.x_ND * batch.norm_N[:, None])
        length_U1 = torch.linalg.vector_norm(sum_UD, dim=1, keepdim=True)
        if self.options.anchor_length is not None:
            sum_UD = sum_UD * (self.options.anchor_length / length_U1.clamp(min=SHORTEST))
        sum_UD = torch.where(length_U1 < SHORTEST, 0, sum_UD)
        positives = AnchoredPositives(anchor_U[of_sample_N], anchor_U=anchor_U, lent_U=lent_U, sum_UD=sum_UD)
        return replace(batch, positives=positives)

    def anchors_of(self, class_U: Tensor, of_sample_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the anchor of each class of the batch (U,), and whether it belongs to other classes (U,).

        Args:
            class_U: int64, the classes of the batch, sorted.
            of_sample_N: number of each sample's class among them.
        """
        num_anchors, U = self.centers.shard.num_classes, len(class_U)
        if num_anchors < U:
            raise ValueError(
                f"the batch has {U} classes and num_anchors={num_anchors} is smaller; raise num_anchors, or use a "
                "smaller batch or more images_per_class"
            )
        anchor_U = class_U % num_anchors
        first_U = torch.full_like(class_U, len(of_sample_N)).scatter_reduce_(
            0, of_sample_N, torch.arange(len(of_sample_N), device=class_U.device), "amin"
        )
        order = first_U.argsort()  # by first appearance in the batch
        order = order[anchor_U[order].argsort(stable=True)]  # by anchor, then by appearance
        sorted_U = anchor_U[order]
        lent_U = torch.zeros_like(class_U, dtype=torch.bool)
        lent_U[order[1:]] = sorted_U[1:] == sorted_U[:-1]
        taken = anchor_U[~lent_U].sort().values
        generator = counter_rng.generator(
            "anchors", self.options.seed, self.step, self.micro_batch, device=class_U.device
        )
        # The j-th free anchor is j plus the number of taken ones before it.
        free = sample_without_replacement(num_anchors - len(taken), U - len(taken), generator)
        free += torch.searchsorted(taken - torch.arange(len(taken), device=taken.device), free, right=True)
        anchor_U[lent_U] = free
        return anchor_U, lent_U

    def loss_inputs(self, batch: GlobalBatch, selection: Selection, rows: ActiveRows) -> LossInputs:
        positives = batch.positives
        assert isinstance(positives, AnchoredPositives)
        local_U = self.centers.shard.local(positives.anchor_U)
        here = ((local_U >= 0) & (positives.sum_UD != 0).any(1)).nonzero()[:, 0]
        here = here[local_U[here].argsort()]
        rows.overlay = Overlay(local_U[here], positives.sum_UD[here], positives.lent_U[here])
        return super().loss_inputs(batch, selection, rows)

    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        raise ValueError(
            "VirtualFC has anchors for many classes each and no topk; use a head with class centers (full, pfc, forest)"
        )

    def extra_repr(self) -> str:
        return f"num_anchors={self.centers.shard.num_classes}, {super().extra_repr()}"
