"""The base class of row optimizers, which update the rows that took part in a step and no others.

A row that took no part keeps its value and its state bit for bit; its momentum and weight decay wait until it takes
part. Row state lives with the rows in `ClassCenters`; `state_dict()` holds hyper-parameters only.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.row_state import RowState
from ..core.timer import Timer
from ..objectives.shared_bias import SharedBias
from .chunk_gradient import ChunkGradient, SummedGradient
from .class_rows import ClassRows
from .pending import PendingGradients


class RowOwner(Protocol):
    """The attributes of a head that a row optimizer uses; it sets `has_optimizer`."""

    centers: ClassRows
    pending: PendingGradients
    timer: Timer
    has_optimizer: bool
    step: int
    shared_bias: SharedBias | None

    def advance(self, applied: bool = True) -> None:
        """Count a step of the optimizer."""


class RowOptimizer(torch.optim.Optimizer):
    """A torch optimizer of class rows. Learning-rate schedulers and `torch.amp.GradScaler` work as usual.

    Its only parameter is a scalar that represents the rows (`PendingGradients.proxy`); the rows themselves are not
    parameters. Subclasses name their row state and update a chunk of rows in place.

    Args:
        head: the head that owns the rows. A new optimizer takes over the row state of an earlier one.
        defaults: the options of the parameter group, with "lr".

    Raises:
        ValueError: row state loaded into the head belongs to another row optimizer.

    Examples:
        >>> optimizer = FullFC(num_classes=1000, embedding_size=16).optimizer(lr=0.1)
        >>> isinstance(optimizer, RowOptimizer)
        True
        >>> schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100)
    """

    def __init__(self, head: RowOwner, defaults: dict[str, Any]):
        super().__init__([{"params": [head.pending.proxy]}], defaults)
        self.head = head
        head.has_optimizer = True
        head.centers.claim(self.row_state(head.centers.width))
        if head.shared_bias is not None:
            head.shared_bias.claim(self.row_state(1))
        self._claim = head.centers.claims

    def row_state(self, width: int) -> dict[str, RowState]:
        """Return the state of each row by name. State starts at zero, and may depend on `param_groups`.

        Args:
            width: columns of the rows: embedding size, plus one with a bias.
        """
        raise NotImplementedError

    def update(self, rows: Tensor, gradient: ChunkGradient, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Update some rows and their state in place.

        Args:
            rows: (k, width), float32, or float64 if the rows are float64.
            gradient: gradient of these rows.
            state: name -> (k, width of that state).
            group: the options of the parameter group.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the rows of all pending gradients, and their state.

        Args:
            closure: computes the loss again, as in torch.optim; its result is returned.

        Raises:
            RuntimeError: the rows have changed since a pending gradient was computed, as after a step without
                `zero_grad()`; or another optimizer owns the row state.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        centers = self.head.centers
        if centers.claims != self._claim:
            raise RuntimeError(
                "another optimizer has been made for this head and took over its row state; call step() of that one"
            )
        row_state = self.row_state(centers.width)
        if not row_state.keys() <= centers.state.keys():  # a change of a group's options may need more state
            centers.claim(row_state, keep=True)
        device = centers.like.device
        with self.head.timer("update", device), torch.autocast(device.type, enabled=False):
            for index, rows, gradient in self.head.pending.stream(centers):
                count = len(rows) // centers.rows_per_class
                state = {name: centers.borrow(index, name, count) for name in centers.state}
                self.update(rows, gradient, state, group)
                for name, value in {"rows": rows, **state}.items():
                    centers.write(index, name, value, self.head.step)
            self._step_shared_bias(group)
        centers.version += 1
        self.head.advance()
        return loss

    def _step_shared_bias(self, group: dict[str, Any]) -> None:
        """Update the bias that all classes share, as a row of one column."""
        bias, gradient = self.head.shared_bias, self.head.pending.bias_gradient()
        if bias is None or gradient is None:
            return
        if not self.row_state(1).keys() <= bias.state.keys():
            bias.claim(self.row_state(1), keep=True)
        value = bias.value.clone()  # a loss that is still to be differentiated holds the old one
        self.update(value, SummedGradient(gradient, value, self.head.centers.workspace), bias.state, group)
        bias.value = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all pending gradients of the rows."""
        self.head.pending.clear()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:
            raise ValueError("a row optimizer has one group, that of its head; use a separate optimizer for parameters")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        raise ValueError(
            "a row optimizer belongs to its head and cannot be copied or pickled; copy the head, make an "
            "optimizer for the copy, and then load head.state_dict() into the copy, which transfers the row state"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the hyper-parameters; `head.state_dict()` holds rows and row state."""
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        return {"state": {}, "param_groups": [{**group, "params": []} for group in groups]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load hyper-parameters.

        Raises:
            ValueError: `state_dict` is not that of a row optimizer.
        """
        (group,), groups = self.param_groups, state_dict.get("param_groups", [])
        if len(groups) != 1 or "lr" not in groups[0]:
            raise ValueError(f"state_dict is not the state of a {type(self).__name__}; it must have one group with lr")
        group.update({name: value for name, value in groups[0].items() if name != "params"})
