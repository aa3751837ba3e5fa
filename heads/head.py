"""Head: the interface that all heads share."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .core.cost import Case, Cost
from .core.options import OptionValue, documented, option_fields, refuse_renamed_methods
from .core.row_state import RowState
from .core.schedule import is_schedule, value_at
from .core.timer import Timer
from .core.uncompiled import run_uncompiled
from .core.warn import warn_user
from .group.collectives import default_group, portable, restored
from .margins.margin import Margin
from .rows.class_rows import ClassRows
from .rows.pending import MOST_WITHOUT_OPTIMIZER

# Number of training batches without an optimizer step after which a warning is issued. The first number applies without
# an optimizer, the second with one, because the user may be accumulating gradients.
FEW_FORWARDS, MANY_FORWARDS = MOST_WITHOUT_OPTIMIZER, 256

Encode = Callable[[Tensor], Tensor]
Batch = Mapping[str, tuple[Any, ...]]

ARGUMENTS = {
    "num_classes": "C, the number of classes over all processes.",
    "embedding_size": "D, the number of columns of an embedding.",
    "num_records": "Number of training records over all processes. Record numbers are in [0, num_records).",
    "process_group": "The processes that share the head. None for the default group if torch.distributed is "
    "initialized, else for this process alone.",
    "device": "Where the head computes; `head.to(device)` changes it.",
    "centers": "Rows of another head with the same classes, which this one selects from and does not train. None for "
    "rows of its own.",
}


class Head(nn.Module):
    """Base class of all heads: embeddings and class labels in, loss out.

    The loss is the mean over the batches of all processes, the same number on each. The gradient of this process's
    embeddings is multiplied by the number of processes, so that DDP's averaging gives the backbone the gradient of that
    mean. Backward does not change the head's state; the optimizer from `optimizer()` does, in its `step()`.

    A subclass declares its options in a dataclass, `Options`. `Head` completes docstring and signature from it.

    Examples:
        >>> head: Head = PartialFC(num_classes=1000, embedding_size=16, sample_rate=0.1)
        >>> optimizer = head.optimizer(lr=0.1)
        >>> head(torch.randn(8, 16, requires_grad=True), torch.arange(8)).backward()
        >>> optimizer.step()
        >>> cosines, classes = head.topk(torch.randn(2, 16), k=5)
    """

    Options: ClassVar[type[Any] | None] = None
    streams: ClassVar[tuple[str, ...]] = ("instance",)  # the batch streams that it trains on
    needs_records: ClassVar[bool] = False  # whether it gets `num_records`, and record numbers with each batch
    num_records: int | None = None  # training records, for heads that keep a number for each
    assignable: ClassVar[tuple[str, ...]] = ("margin", "min_probability")  # options that may change in a training
    state_differs: ClassVar[bool] = False  # whether state outside `sharded_state` differs between processes

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Complete the docstring and the signature of a subclass from its options."""
        super().__init_subclass__(**keywords)
        refuse_renamed_methods(cls)
        documented(cls, ARGUMENTS)
        for name in option_fields(cls):
            if name not in cls.assignable and not hasattr(cls, name):
                setattr(cls, name, OptionValue(name))

    def __init__(self) -> None:
        """Create the head. The docstring of the class describes the arguments."""
        super().__init__()
        run_uncompiled(type(self))
        self.step = 0  # optimizer steps so far
        self.micro_batch = 0  # training forwards since the last optimizer step
        self.has_optimizer = False
        self.timer = Timer()
        self._has_warned_of_steps = False

    @property
    def images_per_class(self) -> int:
        """Images of a class in a batch of the stream "identity": the option of this name if the head has it, else 2."""
        return int(getattr(getattr(self, "options", None), "images_per_class", 2))

    def stream_sizes(self, batch_size: int) -> dict[str, int]:
        """Return the number of a step's images, over all processes, that come from each of `streams`."""
        return {self.streams[0]: batch_size}

    def prepare(self, encoder: nn.Module) -> None:
        """Take a copy of the backbone, for heads that need one; called once, before DDP wraps the backbone."""

    def training_loss(self, encode: Encode, batch: Batch) -> Tensor:
        """Return the loss of one training batch.

        Args:
            encode: the backbone.
            batch: stream name -> (images, labels) of this process, with their weights (n,) as a third if they have any.
                With `needs_records`, the third is the weights or None, and the fourth the record numbers (n,), which
                are positions among the training records.
        """
        images, labels, *rest = batch[self.streams[0]]
        loss: Tensor = self(encode(images), labels, *rest)
        return loss

    def optimizer(self, lr: float, **options: Any) -> torch.optim.Optimizer:
        """Return the optimizer that updates the head's state in its `step()`."""
        raise NotImplementedError

    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k nearest classes of each embedding: cosines and class ids, both (n, k)."""
        raise NotImplementedError

    def held_classes(self) -> Tensor:
        """Return the sorted int64 class ids that a head without class centers holds at the moment."""
        raise NotImplementedError

    def check_fidelity(self) -> None:
        """Raise a ValueError that says why, if the head has no fidelity to a softmax over all classes."""

    def stats(self) -> dict[str, float]:
        """Return numbers worth logging, of this process."""
        raise NotImplementedError

    def scheduled(self, step: int) -> dict[str, float]:
        """Return the values at a step of the options that have a schedule, those of the margin as `margin_NAME`."""
        margin, options = getattr(self, "margin", None), getattr(self, "options", None)
        given = {name: getattr(options, name, None) for name in option_fields(type(self))}
        schedules = {name: value for name, value in given.items() if is_schedule(value)}
        if isinstance(margin, Margin):
            schedules |= {f"margin_{name}": schedule for name, schedule in margin.schedules.items()}
        values = {name: value_at(each, step) for name, each in schedules.items() if isinstance(each, Mapping)}
        return {name: value for name, value in values.items() if value is not None}

    def advance(self, applied: bool = True) -> None:
        """Count a step of the optimizer.

        Args:
            applied: False if the step was skipped, as after an overflow in float16.
        """
        self.step += 1
        self.micro_batch = 0

    def count_forward(self) -> None:
        """Count a training forward, and warn once if no optimizer of the head steps."""
        self.micro_batch += 1
        if self._has_warned_of_steps or self.micro_batch <= (MANY_FORWARDS if self.has_optimizer else FEW_FORWARDS):
            return
        self._has_warned_of_steps = True
        remedy = "call its step()" if self.has_optimizer else "make one with head.optimizer(lr) and call its step()"
        warn_user(
            f"{type(self).__name__} has seen {self.micro_batch} training batches since its optimizer last stepped and "
            f"has learned nothing from them; {remedy}. The class representations are not in head.parameters()"
        )

    def check_group(self) -> None:
        """Raise a RuntimeError if the head was made for one process and a process group has been formed since."""
        if vars(self).get("process_group", ...) is None and default_group() is not None:
            raise RuntimeError(
                f"this {type(self).__name__} was made before torch.distributed.init_process_group and holds all "
                "classes on each process; make it after the group"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or pickle. It has no optimizer yet, and looks the default group up when loaded."""
        state = {**self.__dict__, "has_optimizer": False, "micro_batch": 0}
        if "process_group" in state:
            state["process_group"] = portable(state["process_group"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the state of a copy or pickle."""
        super().__setstate__(state)
        if "process_group" in state:
            self.process_group = restored(state["process_group"])

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state dict contains in addition to tensors: the step."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load what `get_extra_state` returned."""
        self.step, self.micro_batch = state["step"], 0

    def without_local(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return extra state without what one process alone can use, such as an index of its classes."""
        return state

    def extra_repr(self) -> str:
        """Return the options that `print(head)` shows."""
        return ""

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        """Return the needs of a training step on each process, without creating the head.

        Args:
            case: numbers of classes, columns, images and processes, `heads.core.cost.Case`.
            options: an instance of `Options`.
            row_state: name -> table that the row optimizer keeps for each row, such as momentum.

        Returns:
            Memory, traffic and arithmetic of a step of one process, `heads.core.cost.Cost`.
        """
        raise NotImplementedError

    def full_state_dict(self) -> dict[str, Any]:
        """Return the state dict with the rows of all processes, as plain tensors in host memory, for `torch.save`.

        All processes must call it; each needs memory for all classes while it runs. Heads on any number of processes
        can load the result. Use torch.distributed.checkpoint for heads too large for one process.
        """
        state = self.state_dict()
        full = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in state.items()}
        full = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in full.items()}
        if "_extra_state" in full:
            full["_extra_state"] = self.without_local(full["_extra_state"])
        return full

    @property
    def class_centers(self) -> ClassRows | None:
        """The rows that stand for the classes, one or more for each; None for a head without such rows."""
        return None

    @property
    def failure(self) -> str | None:
        """The reason why the next step will raise, or None. Checked between steps, so that training can end cleanly."""
        return None

    def sharded_state(self) -> dict[str, Tensor]:
        """Return the state dict entries that are sharded over the processes; checkpoints save them as shards."""
        return {}
