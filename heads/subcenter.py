"""Sub-centers: several rows for each class, of which the nearest one to an embedding counts."""

from dataclasses import dataclass
from typing import Any

from .core.options import option, whole
from .core.schedule import Schedule
from .objectives.blocks import Block, NearestRow
from .pfc import PartialFC, PartialFCOptions


@dataclass(frozen=True, kw_only=True)
class SubCenterFCOptions(PartialFCOptions):
    """Options of `SubCenterFC`."""

    sample_rate: Schedule = option(
        1.0,
        "Share of the classes, in (0, 1], that take part in a step, drawn as by PartialFC. 1 is all classes. Or {step: "
        "share} to change it from each step on.",
    )
    centers_per_class: int = option(3, "Rows of a class, K.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "centers_per_class", whole("centers_per_class", self.centers_per_class, 1))


class SubCenterFC(PartialFC):
    """Margin softmax over classes of K rows each. The highest cosine of a class's rows is that of the class.

    Only the nearest row of a class gets a gradient. With wrong labels, one row becomes the center of most images, and
    the others those of the wrong ones. `python -m experiments.subcenters` then keeps the dominant row of each class and
    lists the images far from it, and training goes on with one row.

    The head maps embeddings (n, D) and labels (n,) to a loss. Its rows learn from an optimizer of their own::

        head = SubCenterFC(num_classes=10_000, embedding_size=512, centers_per_class=3)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels).backward()
        rows.step()

    Source: Deng et al., "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces", ECCV 2020.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range.

    Examples:
        >>> head = SubCenterFC(num_classes=1000, embedding_size=16, centers_per_class=3)
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
        >>> head.topk(torch.randn(2, 16), k=5)[1].shape
        torch.Size([2, 5])
    """

    Options = SubCenterFCOptions
    options: SubCenterFCOptions

    @classmethod
    def block_of(cls, options: Any) -> Block:
        return NearestRow(options.centers_per_class)

    def extra_repr(self) -> str:
        return f"centers_per_class={self.options.centers_per_class}, {super().extra_repr()}"
