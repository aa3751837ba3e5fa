"""A bias that all classes share: one number, trained by the row optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.row_state import RowState


class SharedBias:
    """One number, the same on all processes, with the state that the row optimizer keeps for it.

    Args:
        value: initial value.
        like: a tensor with the dtype and device of arithmetic.

    Attributes:
        value: (1, 1).
        state: name -> (1, columns), as for a row of one column.
    """

    def __init__(self, value: float, like: Tensor):
        with torch.inference_mode(False):
            self.value = like.new_full((1, 1), value)
        self.state: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] = {}  # state loaded before its optimizer exists

    def claim(self, state: Mapping[str, RowState], *, keep: bool = False) -> None:
        """Allocate the state of a row optimizer, which starts at zero or as loaded.

        Args:
            state: name -> state of a row of one column.
            keep: whether existing state stays.
        """
        known = {**(self.state if keep else {}), **self._loaded}
        with torch.inference_mode(False):
            self.state = {
                name: known[name] if name in known else self.value.new_zeros(1, each.width)
                for name, each in state.items()
            }
        self._loaded = {}

    def to(self, like: Tensor) -> None:
        """Move the bias and its state to the device of a tensor."""
        self.value = self.value.to(like.device)
        self.state = {name: tensor.to(like.device) for name, tensor in self.state.items()}
        self._loaded = {name: tensor.to(like.device) for name, tensor in self._loaded.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the value and of the optimizer's state, in host memory."""
        tensors = {"value": self.value, **self.state, **self._loaded}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        tensors = {name: tensor.to(self.value, copy=True) for name, tensor in state.items()}
        self.value = tensors.pop("value")
        known = {name: tensors.pop(name) for name in list(tensors) if name in self.state}
        self.state.update(known)
        self._loaded = tensors if not self.state else {}
