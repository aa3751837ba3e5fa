"""Fidelity: the share of the exact softmax and of its gradient that a head keeps.

Examples:
    >>> head = PartialFC(num_classes=1000, embedding_size=16, sample_rate=0.1)
    >>> found = fidelity.selection_fidelity(head, torch.randn(8, 16), torch.arange(8))
    >>> 0 < found["mass"] < 1
    True
"""

from .loss import loss_fidelity
from .selection import selection_fidelity

__all__ = ["loss_fidelity", "selection_fidelity"]
