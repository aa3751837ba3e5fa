"""Fidelity: the share of the exact softmax and of its gradient that a head keeps."""

from .loss import loss_fidelity
from .selection import selection_fidelity

__all__ = ["loss_fidelity", "selection_fidelity"]
