"""A head without class centers: the images of a batch are compared with each other.

Each image of the global batch is an *anchor*. Its *positives* are the other images of its class in the batch, and its
*negatives* the images of other classes.

Legend: N samples of all processes, A anchors of a block, D embedding.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .core.cost import Case, Cost
from .core.options import ignored, make_options, number, option, whole
from .core.row_state import RowState
from .core.step_counter import StepCounter
from .group.batch import GlobalBatch, directions, gather_batch
from .group.collectives import default_group, rank_and_size, sum_over_processes
from .head import Head
from .objectives.autograd import with_known_gradients
from .objectives.pairs import contrastive, triplet
from .rows.optimizers import RowSGD

BLOCK = 512  # anchors that are compared with the batch together
LARGEST = 2**24  # comparisons of a block
PUBLISHED: dict[str, dict[str, Any]] = {
    "contrastive": {"temperature": 0.1},
    "triplet": {"triplet_margin": 0.2, "mining": "hard"},
}
MININGS = ("hard", "semihard", "all")


@dataclass(frozen=True, kw_only=True)
class NoCentersOptions:
    """Options of `NoCenters`."""

    loss: str = option("contrastive", '"contrastive", the supervised contrastive loss, or "triplet", the triplet loss.')
    temperature: float | None = option(
        None, 'Divisor of the cosines in loss="contrastive", above 0. None for 0.1, as published.'
    )
    triplet_margin: float | None = option(
        None,
        'Margin between the squared distances of positive and negative in loss="triplet", above 0. None for 0.2, as '
        "published.",
    )
    mining: str | None = option(
        None,
        'Triplets of an anchor in loss="triplet". "hard": its farthest positive with its nearest negative. "semihard": '
        "each positive with the nearest of the negatives that are farther away than it, or with the farthest negative "
        'if none is. "all": those with a loss above 0, of all. None for "hard".',
    )
    images_per_class: int = option(4, "Images of a class in a batch, at least 2.")
    ignore_label: int | None = option(
        None,
        "Samples with this label, such as -100, take no part: the loss is that of the batch without them, and 0 if no "
        "sample remains. None ignores none.",
    )

    def __post_init__(self) -> None:
        if self.loss not in PUBLISHED:
            raise ValueError(f"loss={self.loss!r} must be one of {', '.join(PUBLISHED)}")
        if self.mining not in (None, *MININGS):
            raise ValueError(f"mining={self.mining!r} must be one of {', '.join(MININGS)}; None is hard")
        for loss, names in PUBLISHED.items():
            for name in names if loss != self.loss else ():
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{name}={value} belongs to loss={loss}, not to loss={self.loss}; set it to null")
        for name in ("temperature", "triplet_margin"):
            if (value := getattr(self, name)) is not None and not 0 < number(name, value) < float("inf"):
                raise ValueError(f"{name}={value} must be a number above 0; null is the published one")
        for name, value in PUBLISHED[self.loss].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "images_per_class", whole("images_per_class", self.images_per_class, 2))
        ignored(self.ignore_label)


class NoCenters(Head):
    """Supervised contrastive loss or triplet loss over the images of the global batch.

    Nothing stands for a class, so the memory does not depend on the number of classes, and a class that is not in the
    batch has no effect. Batches need several images of each class. The optimizer counts the steps::

        head = NoCenters(num_classes=1_000_000, embedding_size=512)
        steps = head.optimizer(lr=0.1)
        head(backbone(images), labels).backward()
        steps.step()

    With unit embeddings z, temperature t, and the other images of the batch as candidates, the contrastive loss of an
    anchor is the mean over its positives p of -log softmax(z . z_p / t): "L_out" of the paper. The triplet loss is the
    mean over its triplets of max(0, |z - z_p|^2 - |z - z_n|^2 + triplet_margin).

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020. Schroff et al., "FaceNet", CVPR 2015, for
    semi-hard triplets. Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range.

    Examples:
        >>> head = NoCenters(num_classes=1000, embedding_size=16, temperature=0.1)
        >>> labels = torch.arange(4).repeat_interleave(2)  # two images of each class
        >>> loss = head(torch.randn(8, 16, requires_grad=True), labels)
    """

    Options = NoCentersOptions
    options: NoCentersOptions
    streams = ("identity",)

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ):
        super().__init__()
        self.options = make_options(type(self), options)
        self.num_classes = whole("num_classes", num_classes, 1)
        self.embedding_size = whole("embedding_size", embedding_size, 1)
        self.process_group = process_group if process_group is not None else default_group()
        self.like = torch.empty(0, device=device)
        self._counts: dict[str, float] = {"active_classes": 0, "images_with_loss": 0.0}

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        N, D = case.batch, case.embedding_size
        anchors = N / case.world_size
        sent = case.sent(gathered=N * (4 * (D + 2) + 8) + 8 * case.world_size, summed=4 * (N * D + 1))
        return Cost(
            table_bytes=0,
            work_bytes=4 * (6 * min(BLOCK, anchors) * N + 4 * N * D),
            sent_bytes=sent,
            multiply_adds=3 * anchors * N * D,  # cosines, and the gradients of anchors and of candidates
            moved_bytes=0,
        )

    def forward(self, embeddings: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the mean loss of the samples of all processes that have a positive in the global batch.

        A sample without one, and for the triplet loss without a negative, is left out of the mean. It still is a
        candidate of the others. A mean over no samples is 0.

        Args:
            embeddings: (n, D) of this process, any float dtype; n may differ between processes and be 0.
            labels: (n,) integer class ids in [0, C), or `ignore_label`.
            weight: (n,) weight of each sample as an anchor in the mean; None for ones.

        Returns:
            Scalar, float32.

        Raises:
            ValueError: wrong shapes, dtypes or devices, labels outside [0, C), NaN or Inf among the embeddings. Raised
                on all processes, also if only one has such input.
            RuntimeError: in backward, with `create_graph=True`.
        """
        self.check_group()
        device, learns = self.like.device, self.training and torch.is_grad_enabled()
        with self.timer("forward", device), torch.autocast(device.type, enabled=False):
            batch = gather_batch(
                embeddings,
                labels,
                weight,
                lambda x_nD: directions(x_nD.float()),
                embedding_size=self.embedding_size,
                num_classes=self.num_classes,
                step=self.step,
                device=device,
                group=self.process_group,
                ignore_label=self.options.ignore_label,
                several=False,
            )
            return self._mean_loss(batch, *self._anchors(batch, learns=learns))

    def _anchors(self, batch: GlobalBatch, *, learns: bool) -> tuple[Tensor, Tensor]:
        """Return the class of each sample as a number (N,), and the samples that have a loss."""
        classes, class_N, counts = torch.unique(batch.positives.labels_P, return_inverse=True, return_counts=True)
        has_loss_N = counts[class_N] > 1
        if self.options.loss == "triplet":
            has_loss_N &= counts[class_N] < len(class_N)
        anchors = has_loss_N.nonzero()[:, 0]
        if learns:
            self._counts = {"active_classes": len(classes), "images_with_loss": len(anchors) / max(1, len(class_N))}
            self.count_forward()
        return class_N, anchors

    def _mean_loss(self, batch: GlobalBatch, class_N: Tensor, anchors: Tensor) -> Tensor:
        """Return the weighted mean of the losses of the anchors, attached to the graph of this process's embeddings.

        Each process computes the losses of some anchors with their gradient (N, D), and both are summed over processes.
        """
        group, (rank, world_size) = self.process_group, rank_and_size(self.process_group)
        # All processes of a group must agree, since the gradient is summed.
        wanted = batch.x_nD.requires_grad or (group is not None and torch.is_grad_enabled())
        x_ND = batch.x_ND.detach().requires_grad_(wanted)
        total, gradient_ND = x_ND.new_zeros(1), torch.zeros_like(x_ND) if wanted else x_ND[:0]
        for block in self._blocks(anchors.tensor_split(world_size)[rank], class_N):
            losses_A = self._losses(x_ND, class_N, block)
            loss = torch.dot(batch.weight_N[block], losses_A)
            total += loss.detach()
            if wanted:
                gradient_ND += torch.autograd.grad(loss, x_ND)[0]
        weight = batch.weight_N[anchors].sum()
        packed = sum_over_processes(torch.cat([total, gradient_ND.flatten()]), group)
        packed = packed / torch.where(weight > 0, weight, torch.inf)
        if not wanted:
            return packed[0]
        # The factor compensates DDP, which divides the backbone's gradient by the number of processes.
        gradient_nD = packed[1:].view_as(x_ND)[batch.start : batch.start + len(batch.x_nD)] * world_size
        return with_known_gradients(packed[0], [(batch.x_nD, gradient_nD)])

    def _blocks(self, anchors: Tensor, class_N: Tensor) -> Sequence[Tensor]:
        """Return parts of the anchors whose losses take little memory."""
        if not len(anchors):
            return []
        pairs = int(torch.bincount(class_N).max()) if self.options.mining in ("semihard", "all") else 1
        return anchors.split(max(1, min(BLOCK, LARGEST // (len(class_N) * pairs))))

    def _losses(self, x_ND: Tensor, class_N: Tensor, block: Tensor) -> Tensor:
        """Return the losses (A,) of some anchors, given as their samples (A,)."""
        options = self.options
        cos_AN = x_ND[block] @ x_ND.T
        same_AN = class_N[block, None] == class_N
        own_AN = block[:, None] == torch.arange(len(x_ND), device=block.device)
        positive_AN = same_AN & ~own_AN
        if options.loss == "contrastive":
            assert options.temperature is not None
            return contrastive(cos_AN / options.temperature, positive_AN, own_AN)
        assert options.triplet_margin is not None and options.mining is not None
        return triplet(cos_AN, positive_AN, ~same_AN, options.triplet_margin, options.mining)

    def optimizer(self, lr: float, *, rule: Callable[..., Any] = RowSGD, **options: Any) -> torch.optim.Optimizer:
        """Return an optimizer that counts the steps, so that loops and schedulers work as with other heads.

        There are no rows to update: `rule` and its options, which other heads need, have no effect.

        Raises:
            TypeError: an option that `rule` does not have.
        """
        inspect.signature(rule).bind(self, lr=lr, **options)
        return StepCounter(self, lr, self.like.device)

    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        raise ValueError(
            "NoCenters has no class centers and no topk; use a head with class centers (full, pfc, forest)"
        )

    def check_fidelity(self) -> None:
        raise ValueError(
            "NoCenters holds no classes, since it compares the images of a batch with each other; its fidelity to a "
            "softmax over classes is not defined; set fidelity.interval=null"
        )

    def stats(self) -> dict[str, float]:
        """Return the classes of the last batch, the share of its images that had a loss, and mean milliseconds."""
        return {**self._counts, "memory_bytes": 0.0, **self.timer.milliseconds()}

    def extra_repr(self) -> str:
        return f"loss={self.options.loss}, embedding_size={self.embedding_size}"

    def _apply(self, fn: Any, recurse: bool = True) -> "NoCenters":
        super()._apply(fn, recurse)
        self.like = self.like.to(fn(torch.empty(0, device=self.like.device)).device)
        return self
