"""How much of the exact softmax and its gradient a head keeps."""

from .fidelity import loss_fidelity, selection_fidelity

__all__ = ["loss_fidelity", "selection_fidelity"]
