"""State of a head's loss besides its rows: numbers that the margin carries, and the bias of all classes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..group.positives import Positives
from ..margins.batch import MarginBatch
from ..margins.margin import Margin
from .shared_bias import SharedBias


class LossState:
    """State of a head that is the same on all processes and saved with it.

    Args:
        num_classes: number of classes of the loss.
        like: a tensor with the dtype and device of arithmetic.
        bias: initial value of the bias that all classes share; None without one.
        class_counts: (C,) training examples of each class, in host memory; None if unknown.

    Attributes:
        carried: class of a margin by name -> the numbers that it carries from step to step, as of the last optimizer
            step. No margin reads those of another class.
    """

    def __init__(self, num_classes: int, like: Tensor, bias: float | None, class_counts: Tensor | None):
        self.num_classes = num_classes
        self.shared_bias = None if bias is None else SharedBias(bias, like)
        self.class_counts = class_counts
        self.carried: dict[str, Mapping[str, Tensor]] = {}

    def of_margin(self, margin: Margin, like: Tensor) -> dict[str, Tensor]:
        """Return the carried numbers of a margin, the initial ones at first, as scalars like `like`."""
        carried = self.carried.get(type(margin).__name__)
        if carried is None:
            with torch.inference_mode(False):
                return {name: like.new_tensor(value) for name, value in margin.initial_state.items()}
        return {name: value.to(like) for name, value in carried.items()}

    def commit(self, margin: Margin | None) -> None:
        """Take over the numbers of a margin that has begun a forward pass, if it carries any."""
        if margin is not None and margin.state:
            self.carried[type(margin).__name__] = {name: value.detach() for name, value in margin.state.items()}

    def margin_batch(self, margin: Margin, norm_N: Tensor, positives: Positives, key: tuple[int, ...]) -> MarginBatch:
        """Return what a margin may read of a batch, with lengths, positives and a key of random draws."""
        labels_P = positives.labels_P
        return MarginBatch(
            norm_N=positives.of_samples(norm_N),
            labels_N=labels_P,
            several_norms=None if positives.sample_P is None else norm_N,
            num_classes=self.num_classes,
            state=self.of_margin(margin, norm_N),
            key=key,
            class_counts_N=self._counts_of(labels_P) if margin.uses_class_counts else None,
        )

    def _counts_of(self, labels_N: Tensor) -> Tensor:
        if self.class_counts is None:  # the margin was assigned later
            raise ValueError(
                "the margin needs class_counts, the number of training examples of each class; pass them to the head"
            )
        return self.class_counts[labels_N.to(self.class_counts.device)].to(labels_N.device)

    def to(self, like: Tensor) -> None:
        """Move the bias to the device of a tensor; carried numbers follow when they are read."""
        if self.shared_bias is not None:
            self.shared_bias.to(like)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; empty for a loss without any."""
        carried = {of: {name: float(value) for name, value in state.items()} for of, state in self.carried.items()}
        state: dict[str, Any] = {"carried": carried} if carried else {}
        if self.shared_bias is not None:
            state["shared_bias"] = self.shared_bias.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any], like: Tensor) -> None:
        """Load what `state_dict` returned; what is missing keeps its value, and carried numbers begin anew."""
        with torch.inference_mode(False):
            self.carried = {
                of: {name: like.new_tensor(value) for name, value in numbers.items()}
                for of, numbers in state.get("carried", {}).items()
            }
            if self.shared_bias is not None and "shared_bias" in state:
                self.shared_bias.load_state_dict(state["shared_bias"])
