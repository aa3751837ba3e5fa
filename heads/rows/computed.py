"""Class centers that are computed from the class id whenever they are read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..core.row_state import RowState
from .class_rows import ClassRows, RowIndex
from .formulas import Formula

CHUNK = 2048  # rows computed at a time


class ComputedCenters(ClassRows):
    """Rows (classes of this shard, D) that a formula computes: no storage, no gradient, no state of an optimizer.

    A state dict has the description of the formula in place of rows, and rows of another one are refused.

    Args:
        formula: computes rows from class ids.
        process_group: the processes that share the classes; None for one process.
        device: device on which rows are computed.

    Raises:
        ValueError: more processes than classes allow.
    """

    learned = False

    def __init__(
        self,
        formula: Formula,
        *,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__(
            formula.num_classes,
            formula.embedding_size,
            bias=None,
            seed=formula.seed,
            process_group=process_group,
            device=device,
            dtype=torch.float32,
        )
        self.formula = formula

    def read(self, index: RowIndex, name: str = "rows", out: Tensor | None = None) -> Tensor:
        assert name == "rows", "computed rows have no state"
        classes = self.classes(index)
        rows = self.like.new_empty(len(classes), self.width) if out is None else out
        for a in range(0, len(classes), CHUNK):  # a formula needs some memory for temporary values
            rows[a : a + CHUNK] = self.formula(classes[a : a + CHUNK])
        return rows

    def write(self, index: RowIndex, name: str, values: Tensor, step: int = 0) -> None:
        """Raise a ValueError: no row can be stored."""
        raise ValueError(
            f"the rows of kind={self.formula.kind} are computed from the class ids and cannot be written; use a head "
            "that stores rows, such as full or pfc"
        )

    def claim(self, state: Mapping[str, RowState], *, keep: bool = False) -> None:
        """Count an optimizer. Rows that nothing changes need no state."""
        self.claims += not keep

    @property
    def memory_bytes(self) -> int:
        return 0

    def faults(self, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
        tables = [key for key in state_dict if key.startswith(prefix) and key != f"{prefix}_extra_state"]
        if tables:
            return [f"{tables[0]}: these rows are computed from the class ids, and the state dict holds stored ones"]
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved not in (None, self.get_extra_state()):
            return [f"{prefix}formula: got {saved}, but this head has {self.get_extra_state()}"]
        return []

    def get_extra_state(self) -> dict[str, Any]:
        """Return the description of the formula."""
        return self.formula.description()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Do nothing: `faults` has compared the description."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Report rows of another formula as an error, and count the load."""
        _, _, _, _, error_msgs = rest
        error_msgs += self.faults(state_dict, prefix)
        self.version += 1
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{self.formula}, {super().extra_repr()}"
