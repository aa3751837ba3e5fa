"""State that a row optimizer stores for each class row."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowState:
    """One named table of optimizer state.

    Args:
        width: numbers per row.
        dtype: dtype of these numbers; None for the dtype in which rows are updated.
    """

    width: int
    dtype: torch.dtype | None = None
