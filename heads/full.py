"""The full head: the exact margin softmax over all classes, model-parallel over the processes."""

from dataclasses import dataclass

from torch import Tensor

from .center_head import CenterHead
from .core.options import number, option
from .rows.options import CenterOptions
from .selection.selection import Selection


@dataclass(frozen=True, kw_only=True)
class FullFCOptions(CenterOptions):
    """Options of `FullFC`."""

    min_probability: float = option(
        0.0,
        "Rows whose largest probability over the batch is below this, and that are the class of no sample, are left "
        "out of the update. Loss and gradient of the embeddings remain exact. If more than half of a process's rows "
        "would take part, all do. 0 leaves no row out.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= number("min_probability", self.min_probability) < 1:
            raise ValueError(f"min_probability={self.min_probability} must be in [0, 1); 0 leaves no row out")


class FullFC(CenterHead):
    """Margin softmax over all classes in every step.

    The head maps embeddings (n, D) and labels (n,) to a loss. Its rows learn from an optimizer of their own::

        head = FullFC(num_classes=10_000, embedding_size=512)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels).backward()
        rows.step()

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=CosFace(s=16, m=0.2))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
        >>> loss.shape
        torch.Size([])
    """

    Options = FullFCOptions

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        return Selection()
