"""Prototypes: fixed rows that are computed from the class id, with nothing to store or to update."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .core.cost import Case, Cost
from .core.options import option
from .core.row_state import RowState
from .pfc import PartialFC, SamplingOptions
from .rows.class_rows import ClassRows
from .rows.computed import ComputedCenters
from .rows.formulas import FORMULAS, checked_kind


@dataclass(frozen=True, kw_only=True)
class PrototypesOptions(SamplingOptions):
    """Options of `Prototypes`."""

    kind: str = option(
        "random",
        '"random" directions, drawn by `seed`, for any number of classes; "simplex", of equal and least possible '
        'cosines, for up to D + 1 classes; or "permutations" of [1, 0, .., 0, -1], for up to D (D - 1) classes.',
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_kind(self.kind)
        assert self.objective is not None and self.margin is not None
        if self.objective.bias == "class":
            raise ValueError(
                f"objective={type(self.objective).__name__} learns a bias for each class, and prototypes store nothing "
                "for a class; use objective=UniFace(), whose bias is one number"
            )
        if not self.margin.normalize:
            raise ValueError(
                f"margin={type(self.margin).__name__} has a bias for each class, and prototypes store nothing for a "
                "class; use a margin of cosines, such as CosFace()"
            )


class Prototypes(PartialFC):
    """Margin softmax over fixed rows of unit length, each computed from its class id, with PartialFC's selection.

    The backbone alone learns, so that the head needs no memory for any number of classes::

        head = Prototypes(num_classes=100_000_000, embedding_size=512, sample_rate=1e-5)
        rows = head.optimizer(lr=0.1)  # steps like that of other heads, for an objective with a bias
        head(embeddings, labels).backward()
        rows.step()

    Gradients of the rows are not computed. With C classes in D dimensions, the cosine of two rows is 0 +- 1 / sqrt(D)
    for kind="random", -1 / (C - 1) for "simplex", and 0, +-1/2 or -1 for "permutations". A simplex of C < D + 1 classes
    lies in the first C - 1 columns, and the others are 0.

    Sources: Mettes et al., "Hyperspherical Prototype Networks", NeurIPS 2019, with other formulas of the rows;
    Lindstrom et al., "A Coding-Theoretic Analysis of Hyperspherical Prototypical Learning Geometry", 2407.07664;
    Gabdullin, "Using predefined vector systems as latent space configuration for neural network supervised training on
    data with arbitrarily large number of classes", 2510.04090, which perturbs the permutations at random (only the
    abstracts were readable). They compare known classes; nobody has reported how such embeddings rank unknown ones.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range, or `kind` has fewer rows than there are classes.

    Examples:
        >>> head = Prototypes(num_classes=10**8, embedding_size=16, sample_rate=1e-5)
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
        >>> int(head.stats()["active_classes"])
        1000
    """

    Options: ClassVar[type[SamplingOptions]] = PrototypesOptions

    def make_centers(self, num_classes: int, bias: float | None, device: torch.device | str | None) -> ClassRows:
        assert bias is None, "the options refuse biases of classes"
        formula = FORMULAS[self.options.kind](num_classes, self.embedding_size, self.options.seed)
        return ComputedCenters(formula, process_group=self.process_group, device=device)

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        FORMULAS[options.kind](case.num_classes, case.embedding_size)  # refuses more classes than it has rows
        return super().cost(case, options, row_state=row_state)

    def extra_repr(self) -> str:
        return f"kind={self.options.kind}, {super().extra_repr()}"
