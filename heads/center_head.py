"""CenterHead: the training step that all heads with class centers share.

A step gathers the batch from all processes, *selects* the classes that take part, computes the exact margin softmax
over their rows, and leaves the rows' gradient *pending* until the row optimizer steps. A subclass overrides
`select_classes`, and `on_selected` if it records anything of a step.

Legend: n batch of this process, N batch of all processes, D embedding, C classes, K active rows of this process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .core.cost import Case, Cost
from .core.matmul import MatMul
from .core.options import make_options, whole
from .core.row_state import RowState
from .group.batch import GlobalBatch, gather_batch, gather_embeddings, in_rows_space, trainable
from .group.collectives import default_group
from .margins.class_counts import checked_counts
from .objectives.autograd import no_loss, streamed_loss
from .objectives.blocks import Block
from .objectives.inputs import LossInputs
from .objectives.loss_state import LossState
from .objectives.objective import Objective
from .objectives.row_gradient import RowGradient
from .objectives.topk import nearest_classes
from .row_head import RowHead
from .rows.active import ActiveRows
from .rows.class_rows import ClassRows
from .rows.cost import center_cost, what_fits
from .rows.options import CenterOptions, LossOptions
from .rows.pending import PendingGradients
from .selection.counts import SelectionCounts
from .selection.selection import Selection


class CenterHead(RowHead):
    """Base class of heads that keep one row, the class center, per class.

    The loss is the objective, by default the exact margin softmax, over the selected rows.

    Examples:
        >>> class EveryOther(CenterHead):
        ...     def select_classes(self, embeddings, labels):
        ...         local = self.centers.shard.local(labels)
        ...         drawn = torch.arange(0, self.centers.shard.size, 2)
        ...         return Selection(torch.cat([drawn, local[local >= 0]]).unique())
        >>> head = EveryOther(num_classes=1000, embedding_size=16)
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
        >>> int(head.stats()["active_classes"])
        504
    """

    Options: ClassVar[type[LossOptions]] = CenterOptions
    objective: Objective

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        centers: ClassRows | None = None,
        **options: Any,
    ):
        super().__init__()
        self.options: Any = make_options(type(self), options)
        self.num_classes = whole("num_classes", num_classes, 1)
        self.embedding_size = whole("embedding_size", embedding_size, 1)
        self.margin = self.options.margin
        self.min_probability = getattr(self.options, "min_probability", 0.0)  # an option of `FullFC` only
        objective, log_q = self.options.objective, getattr(self.options, "log_q", False)
        loss_classes, self.block = self.loss_classes(self.num_classes, self.options), self.block_of(self.options)
        shares = self.active_shares(loss_classes, self.options)
        objective.check(self.margin, samples=min(shares) < 1, log_q=log_q, min_probability=self.min_probability)
        counts = checked_counts(self.options.class_counts, self.margin, self.num_classes)
        self.matmul = MatMul(self.options.compute)
        self.process_group = process_group if process_group is not None else default_group()
        bias = objective.initial_bias(self.margin.at(0), shares[0] * loss_classes) if objective.bias else 0.0
        column = bias if objective.bias == "class" else None if self.margin.normalize else 0.0
        objective.check_rows(self.block.size, self.margin)
        if centers is not None:
            centers.check_shared(loss_classes, self.embedding_size, self.block.size, column is not None)
            centers.check_layout(self.draws_blocks(self.options))
        self.centers = self.make_centers(loss_classes, column, device) if centers is None else centers
        shared = bias if objective.bias == "shared" else None
        self.loss_state = LossState(loss_classes, self.centers.like, shared, counts)
        self.pending = PendingGradients(self.centers.like.device)
        self.counts = SelectionCounts()
        self.figures: dict[str, Tensor] = {}  # of the loss of the last training forward
        self.probing = False  # whether a selection must not change the head

    def make_centers(self, num_classes: int, bias: float | None, device: torch.device | str | None) -> ClassRows:
        """Return the rows of the classes of the loss, with a last column of this initial value if any."""
        rows, group = self.block.size, self.process_group
        size, blocks = self.embedding_size, self.draws_blocks(self.options)
        centers: ClassRows = self.options.centers(num_classes, size, rows, bias, group, device, scattered=blocks)
        return centers

    @classmethod
    def loss_classes(cls, num_classes: int, options: Any) -> int:
        """Return the number of classes that the loss compares; another one than that of labels if they share rows."""
        return num_classes

    @classmethod
    def block_of(cls, options: Any) -> Block:
        """Return the rows of a class, and how their cosines become those of the loss."""
        return Block()

    @classmethod
    def draws_blocks(cls, options: Any) -> bool:
        """Return whether the head draws adjacent rows together, so that they must be those of unrelated classes."""
        return getattr(options, "sample_block", 1) > 1

    @classmethod
    def active_shares(cls, num_classes: int, options: Any) -> list[float]:
        """Return the expected share of the classes, in (0, 1], of a step: at step 0, and after each change of it."""
        return [1.0]

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        case = replace(case, num_classes=cls.loss_classes(case.num_classes, options))
        shares = cls.active_shares(case.num_classes, options)
        return center_cost(case, options, row_state=row_state, shares=shares, rows_per_class=cls.block_of(options).size)

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        """Return the classes of this training step.

        Key random draws by step and micro-batch. With `probing` set the method must change nothing: `heads.fidelity`
        asks for selections of other micro-batches, and a forward under `torch.no_grad()` only reads. State that later
        steps depend on is updated in `on_selected`.

        Args:
            embeddings: (N, D) of all processes.
            labels: (N,) of all processes.

        Returns:
            The rows of this process's shard, `Selection(ids)`, with all positives; `Selection()` for all rows.
        """
        raise NotImplementedError

    def on_selected(self, batch: GlobalBatch, ids: Tensor | None) -> None:
        """Record a training step's batch and selected rows of the shard, `ids`; None for all rows."""

    def end_selection(self) -> None:
        """End what `select_classes` has begun in the background, because another head selects from now on."""

    def forward(
        self, embeddings: Tensor, labels: Tensor, weight: Tensor | None = None, records: Tensor | None = None
    ) -> Tensor:
        """Return the loss over the global batch; in eval mode over all classes, without changing the head.

        In training mode under `torch.no_grad()` it is the loss over classes selected as in training, and the head does
        not change either. `torch.compile` leaves it uncompiled.

        Args:
            embeddings: (n, D) of this process, any float dtype; n may differ between processes and be 0.
            labels: (n,) integer class ids in [0, C), or `ignore_label`; or (n, L), padded with -1.
            weight: (n,) weight of each sample in the mean; None for ones.
            records: (n,) numbers of their training records, for a head with `needs_records` in training mode.

        Returns:
            Scalar, float32 (float64 if the rows are).

        Raises:
            ValueError: wrong shapes, dtypes or devices, labels outside [0, C), NaN or Inf among the embeddings. Raised
                on all processes, also if only one has such input.
            RuntimeError: in backward, if the rows have changed since forward, or with `create_graph=True`.
        """
        self.check_group()
        device, learns = self.centers.like.device, self.training and torch.is_grad_enabled()
        with self.timer("forward", device), torch.autocast(device.type, enabled=False):
            batch = self.gather_batch(embeddings, labels, weight, records, learns=learns)
            if not len(batch.x_ND):  # all samples are ignored
                return no_loss(batch, self.pending.begin if learns else None)
            selection = Selection()
            if self.training:
                with self.only_looking(not learns):
                    selection = self.select_classes(batch.x_ND, batch.positives.labels_P)
            num_active = self.centers.shard.size if selection.ids is None else len(selection.ids)
            column = num_active * self.block.size * self.centers.like.element_size()
            room = self.options.logits_budget_mb * 2**20 - self.pending.kept_bytes if batch.x_nD.requires_grad else -1
            keep_logits, keep_rows = what_fits(column * len(batch.x_ND), column * self.centers.width, room)
            rows = ActiveRows(self.centers, selection, keep=keep_rows)
            loss = self.objective.streamed(self.loss_inputs(batch, selection, rows))
            if learns:
                self.on_selected(batch, selection.ids)
                self.counts.record(len(rows), batch.positives.labels_P, self.centers.shard, self.step)
                self.count_forward()

            def add_pending(gradient: RowGradient, finite: Tensor) -> None:
                if learns:
                    self.pending.append(gradient, finite, has_optimizer=self.has_optimizer)

            value = streamed_loss(batch, loss, keep=keep_logits, on_backward=add_pending, timer=self.timer)
            if learns:
                self.figures = loss.figures()
            return value

    def gather_batch(
        self,
        embeddings: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        records: Tensor | None = None,
        *,
        learns: bool = False,
    ) -> GlobalBatch:
        """Return the checked batch of all processes, with embeddings in the space of the rows.

        With `learns` the embeddings require a gradient in any case, so that a frozen backbone still trains the rows.
        Arguments and errors are those of `forward`.
        """
        batch = gather_batch(
            embeddings,
            labels,
            weight,
            lambda x_nD: self.to_rows_space(trainable(x_nD) if learns else x_nD),
            embedding_size=self.embedding_size,
            num_classes=self.num_classes,
            step=self.step,
            device=self.centers.like.device,
            group=self.process_group,
            ignore_label=self.options.ignore_label,
            records=records if self.training else None,
            num_records=self.num_records if self.training else None,
        )
        drawn, key = self.options.drawn, (self.options.seed, self.step, self.micro_batch)
        return self.in_loss_classes(batch.with_drawn(drawn, key) if self.training and drawn is not None else batch)

    def in_loss_classes(self, batch: GlobalBatch) -> GlobalBatch:
        """Return the batch with the classes that the loss compares, where they are not those of the labels."""
        return batch if self.centers.layout is None else batch.with_classes(self.centers.slots)

    @torch.no_grad()
    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k classes nearest to each embedding, exact over the classes of all processes.

        Args:
            embeddings: (n, D) of this process; n may differ between processes.
            k: between 1 and C.

        Returns:
            Cosines, highest first, and class ids, both (n, k). For `Softmax`, inner products plus bias.

        Raises:
            ValueError: k is out of range, or embeddings have a wrong shape, dtype or device.
        """
        self.check_group()
        shard, device = self.centers.shard, self.centers.like.device
        if (k := whole("k", k, 1)) > shard.num_classes:
            raise ValueError(f"k={k} must be between 1 and the number of classes, {shard.num_classes}")
        with torch.autocast(device.type, enabled=False):
            group, to_rows_space, D = self.process_group, self.to_rows_space, self.embedding_size
            x_ND, sizes = gather_embeddings(embeddings, to_rows_space, embedding_size=D, device=device, group=group)
            rows, size = ActiveRows(self.centers, Selection(), keep=False), self.block.size
            cosines, slots = nearest_classes(
                x_ND, rows, k, shard, sizes, group, normalize=self.margin.normalize, rows_per_class=size
            )
            return cosines, self.centers.classes_of(slots)

    def stats(self) -> dict[str, float]:
        """Return numbers of this process: active classes and negatives of the last step, bytes, mean milliseconds.

        In addition those of the objective in the last step, over all processes, such as the support of `QMargin`.
        """
        figures = {name: float(figure) for name, figure in self.figures.items()}
        return {**self.counts.last, **figures, "memory_bytes": self.centers.memory_bytes, **self.timer.milliseconds()}

    def to_rows_space(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (n, D) at unit length, or with a last column of ones if the margin has a bias."""
        return in_rows_space(embeddings.to(self.centers.like.dtype), normalize=self.margin.normalize)

    @contextmanager
    def only_looking(self, looking: bool = True) -> Iterator[None]:
        """Set `probing` within the context if `looking`, so that `select_classes` changes nothing."""
        before, self.probing = self.probing, self.probing or looking
        try:
            yield
        finally:
            self.probing = before

    def extra_repr(self) -> str:
        return f"margin={self.margin}, embedding_size={self.embedding_size}, seed={self.options.seed}"

    def loss_inputs(self, batch: GlobalBatch, selection: Selection, rows: ActiveRows) -> LossInputs:
        """Return what the objective computes the loss of a batch from, with these active classes and their rows."""
        key, shard = (self.options.seed, self.step, self.micro_batch), self.centers.shard
        positives, labels_M = batch.positives, batch.positives.labels_M
        by_id = positives.with_classes(self.centers.classes_of)  # for the margin, which may be of one's own
        return LossInputs(
            x_ND=batch.x_ND,
            weight_N=batch.weight_N,
            positives=positives,
            position_P=selection.positions(shard.local(positives.labels_P)),
            position_M=None if labels_M is None else selection.find(shard.local(labels_M)),
            rows=rows,
            margin=self.margin.at(self.step),
            batch=self.loss_state.margin_batch(self.margin, batch.norm_N, by_id, key),
            bias=None if self.shared_bias is None else self.shared_bias.value,
            log_q_K=selection.log_q,
            group=self.process_group,
            block=self.block,
            min_probability=self.min_probability if self.training else 0.0,
            matmul=self.matmul if self.training else MatMul(),
            workspace=self.centers.workspace,
        )
