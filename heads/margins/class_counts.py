"""The number of training examples of each class, for margins that depend on it."""

from typing import Any

import torch
from torch import Tensor

from .margin import Margin

ClassCounts = Any  # (C,) whole numbers: a tensor, an array or a sequence; None if unknown


def checked_counts(counts: ClassCounts, margin: Margin, num_classes: int) -> Tensor | None:
    """Return class counts as an int64 tensor (C,) in host memory; None if there are none.

    Raises:
        ValueError: the margin needs counts and there are none, or they are not one whole number for each class.
    """
    if counts is None and not margin.uses_class_counts:
        return None
    if counts is None:
        raise ValueError(
            f"margin={type(margin).__name__} needs class_counts, the number of training examples of each class; pass "
            f"class_counts with {num_classes} numbers"
        )
    table = torch.as_tensor(counts)
    if table.shape != (num_classes,) or table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        raise ValueError(
            f"class_counts of {list(table.shape)} {table.dtype} must be one whole number for each of the "
            f"num_classes={num_classes} classes"
        )
    if len(table) and int(table.min()) < 0:
        raise ValueError(f"class_counts has {int(table.min())}; the number of examples of a class must be at least 0")
    return table.to("cpu", torch.int64)
