"""RowHead: the rows of a head as state: their optimizer, pending gradients, copies and state dicts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .group.collectives import sum_over_processes
from .head import Head
from .margins.margin import Margin
from .objectives.loss_state import LossState
from .objectives.shared_bias import SharedBias
from .rows.class_rows import ClassRows
from .rows.optimizers import RowSGD
from .rows.pending import PendingGradients
from .rows.row_optimizer import RowOptimizer


class RowHead(Head):
    """Base class of heads whose rows are trained by a row optimizer.

    Attributes:
        margin: the margin of the loss.
        centers: the rows of this process.
        loss_state: numbers of the margin and the bias of all classes.
        pending: gradients that wait for the optimizer's step.
    """

    margin: Margin
    centers: ClassRows
    loss_state: LossState
    pending: PendingGradients

    @property
    def class_centers(self) -> ClassRows | None:
        return self.centers

    @torch.no_grad()
    def rows(self, classes: Tensor) -> Tensor:
        """Return copies of the rows of classes, wherever they are stored; on every process.

        Args:
            classes: int64 (n,) class ids, the same on all processes.

        Returns:
            (n, width), or (n, rows_per_class, width) if a class has several, in the dtype of arithmetic.

        Raises:
            ValueError: a number is no class, or the head has no rows that stand for classes.
        """
        centers = self.class_centers
        if centers is None:
            raise ValueError(f"{type(self).__name__} has no rows that stand for classes")
        classes = classes.to(centers.like.device)
        local, size, count = centers.local(classes), centers.rows_per_class, centers.shard.num_classes
        if (outside := (classes < 0) | (classes >= count)).any():
            raise ValueError(f"class {int(classes[outside][0])} is out of range; class ids must be in [0, {count})")
        rows = centers.like.new_zeros(len(classes), size * centers.width)
        own = local >= 0
        rows[own] = centers.read(local[own]).view(-1, size * centers.width)
        rows = sum_over_processes(rows, centers.process_group)
        return rows if size == 1 else rows.view(len(classes), size, centers.width)

    @property
    def carried(self) -> dict[str, Tensor]:
        """The numbers that the margin carries from step to step, scalars, as of the last optimizer step."""
        return self.loss_state.of_margin(self.margin, self.centers.like)

    @property
    def shared_bias(self) -> SharedBias | None:
        """The bias of all classes that the objective learns; None for objectives without one."""
        return self.loss_state.shared_bias

    def advance(self, applied: bool = True) -> None:
        if applied:
            self.loss_state.commit(self.pending.last_margin())
        super().advance(applied)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the pending gradients of the rows, as `zero_grad` of their optimizer does."""
        super().zero_grad(set_to_none)
        self.pending.clear()

    def optimizer(self, lr: float, *, rule: Callable[..., RowOptimizer] = RowSGD, **options: Any) -> RowOptimizer:
        """Return the optimizer of the rows.

        Args:
            lr: learning rate.
            rule: a class from `heads.rows.optimizers`.
            options: options of `rule`. RowSGD has momentum 0.9 and weight decay 5e-4 by default.
        """
        return rule(self, lr=lr, **options)

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), **self.loss_state.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.loss_state.load_state_dict(state, self.centers.like)

    def sharded_state(self) -> dict[str, Tensor]:
        state = self.centers.state_dict()
        return {f"centers.{name}": tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or pickle, without pending gradients."""
        return {**super().__getstate__(), "pending": PendingGradients(self.centers.like.device)}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load the step count only if rows and row state fit; `centers` reports those that do not."""
        if not self.centers.faults(state_dict, f"{prefix}centers."):
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> "RowHead":
        super()._apply(fn, recurse)
        self.pending.to(self.centers.like.device)
        self.loss_state.to(self.centers.like)
        return self
