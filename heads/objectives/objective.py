"""Objective: what a head asks of the logits. The softmax is the default; the others have one threshold for all classes.

An objective is a dataclass of options that makes the loss of each forward pass. Scale and margin come from the margin.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from ..core.options import Configured
from ..margins.margin import Margin

if TYPE_CHECKING:
    from .inputs import LossInputs
    from .streamed import Streamed


class Objective(Configured, ABC):
    """Base class of all objectives.

    Examples:
        >>> [kind.__name__ for kind in (BCE, CrossEntropy, QMargin) if issubclass(kind, Objective)]
        ['BCE', 'CrossEntropy', 'QMargin']
    """

    bias: ClassVar[str | None] = None  # a learned bias: "shared", one number for all classes; or "class", one for each
    passes: ClassVar[int] = 2  # passes over the rows from forward to backward
    # Numbers of 4 bytes that a step sums over processes beside the gradient of the embeddings: for each sample, and in
    # all. Those of the softmax are target cosine, maximum and sum of exponentials.
    sums: ClassVar[tuple[int, int]] = (3, 0)
    work_bytes: ClassVar[int] = 0  # memory of a step for each sample, beside that of a chunk of rows
    sparse: ClassVar[bool] = False  # whether negatives may have a gradient of exactly 0

    @abstractmethod
    def streamed(self, inputs: "LossInputs") -> "Streamed":
        """Return the loss of one forward pass."""

    def initial_bias(self, margin: Margin, active_classes: float) -> float:
        """Return the initial value of the bias.

        Args:
            margin: the head's margin.
            active_classes: expected number of classes in a step, over all processes.
        """
        raise NotImplementedError

    def check(self, margin: Margin, *, samples: bool = False, log_q: bool = False, min_probability: float = 0) -> None:
        """Raise a ValueError if a margin or an option of the head cannot be combined with this objective.

        Args:
            margin: the head's margin.
            samples: whether the head leaves classes out of a step.
            log_q, min_probability: options of the head.
        """

    def check_rows(self, rows_per_class: int, margin: Margin) -> None:
        """Raise a ValueError if this objective cannot be used with several rows a class."""
        if rows_per_class > 1 and self.bias == "class" and margin.normalize:
            raise ValueError(
                f"objective={type(self).__name__} has a bias for each class and cannot be used with {rows_per_class} "
                "rows a class; use UniFace, with one bias for all classes, or the objective softmax"
            )


def checked_objective(objective: object) -> Objective:
    """Return the objective, or raise a ValueError if it is not an `Objective`."""
    if not isinstance(objective, Objective):
        raise ValueError(f"objective={objective!r} must be an objective object, such as objective=UniFace()")
    return objective
