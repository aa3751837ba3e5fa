"""Options of heads with class centers."""

import os
from dataclasses import dataclass

import torch
from torch.distributed import ProcessGroup

from ..core import dtypes
from ..core.options import ignored, number, option, whole
from ..margins.class_counts import ClassCounts
from ..margins.cosface import CosFace
from ..margins.margin import Margin, checked_margin
from ..objectives.objective import Objective, checked_objective
from ..objectives.softmax import CrossEntropy
from .centers import ClassCenters


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of every `CenterHead`.

    Raises:
        ValueError: an option is out of range.
    """

    margin: Margin | None = option(None, "A margin from `heads.margins`. None for CosFace(s=64, m=0.4).")
    objective: Objective | None = option(None, "An objective from `heads.objectives`. None for CrossEntropy().")
    class_counts: ClassCounts = option(
        None, "Number of training examples of each class, (C,), for margins that depend on it, such as ClassMargin."
    )
    positives: str = option(
        "all",
        'Labels of a sample that are targets in a step, where it has several: "all", or "draw:3" for 3 drawn anew in '
        "each step. The others are left out of its negatives.",
    )
    ignore_label: int | None = option(
        None,
        "Samples with this label, such as -100, take no part: the loss is that of the batch without them, and 0 if no "
        "sample remains. None ignores none.",
    )
    seed: int = option(0, "Seed of the initial rows and of the selection.")
    logits_budget_mb: float = option(
        512,
        "Memory of this process, in MiB, in which cosines, and then active rows, are kept from the forward pass to the "
        "backward pass and the step. Those that do not fit are computed or gathered again.",
    )
    compute: str = option("fp32", '"fp32", or "bf16" for matrix products of inputs rounded to bfloat16.')

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole("seed", self.seed, 0))
        if self.drawn == 0:
            raise ValueError(f"positives={self.positives!r} must be 'all', or 'draw:3' to draw 3 labels of a sample")
        ignored(self.ignore_label)
        number("logits_budget_mb", self.logits_budget_mb, least=0)
        margin = CosFace() if self.margin is None else checked_margin(self.margin)
        objective = CrossEntropy() if self.objective is None else checked_objective(self.objective)
        object.__setattr__(self, "margin", margin)
        object.__setattr__(self, "objective", objective)

    @property
    def drawn(self) -> int | None:
        """Labels of a sample that are drawn in a step; None for all, 0 for a wrong option."""
        kind, _, count = str(self.positives).partition(":")
        if kind == "all" and not count:
            return None
        return int(count) if kind == "draw" and count.isascii() and count.isdigit() else 0


@dataclass(frozen=True, kw_only=True)
class CenterOptions(LossOptions):
    """Options of heads that store rows for their classes.

    Raises:
        ValueError: an option is out of range.
    """

    dtype: torch.dtype | str = option(
        "fp32",
        'Dtype of the stored rows: "fp32"; "bf16", with arithmetic in float32; or "fp64", to check numerics.',
    )
    rounding: str = option("stochastic", 'Rounding of rows stored in bf16: "stochastic" or "nearest".')
    store: str = option(
        "device",
        'Where rows are stored: on the "device", in "host" memory, or on "disk" in sparse files of `store_dir`.',
    )
    store_dir: str | os.PathLike[str] | None = option(None, 'Folder of the files of store="disk".')

    def __post_init__(self) -> None:
        super().__post_init__()
        dtypes.named("dtype", self.dtype)

    def centers(
        self,
        num_classes: int,
        embedding_size: int,
        rows_per_class: int,
        bias: float | None,
        process_group: ProcessGroup | None,
        device: torch.device | str | None,
        *,
        scattered: bool = False,
    ) -> ClassCenters:
        """Return the class centers of a head with these options; see `ClassCenters`."""
        return ClassCenters(
            num_classes,
            embedding_size,
            rows_per_class=rows_per_class,
            bias=bias,
            seed=self.seed,
            scattered=scattered,
            process_group=process_group,
            device=device,
            dtype=dtypes.named("dtype", self.dtype),
            rounding=self.rounding,
            store=self.store,
            store_dir=self.store_dir,
        )
