"""Large-classification heads: from embeddings to a loss over 10^4 to 10^8 classes.

Needs torch and numpy only, and serves in any training loop.
"""

from . import fidelity
from .center_head import CenterHead
from .ffc import FFC
from .forest import HashingForest
from .full import FullFC
from .head import Head
from .indexes import IVF, Annoy, Exact, Index
from .margins import ArcFace, CombinedMargin, CosFace, Margin, Softmax, SVSoftmax
from .pfc import PartialFC
from .rows.optimizers import RowAdagrad, RowAdamW, RowSGD
from .rows.row_optimizer import RowOptimizer
from .selection.selection import Selection

__version__ = "0.2.0"  # of the whole project: pyproject.toml reads it here

__all__ = [
    "FFC",
    "IVF",
    "Annoy",
    "ArcFace",
    "CenterHead",
    "CombinedMargin",
    "CosFace",
    "Exact",
    "FullFC",
    "HashingForest",
    "Head",
    "Index",
    "Margin",
    "PartialFC",
    "RowAdagrad",
    "RowAdamW",
    "RowOptimizer",
    "RowSGD",
    "SVSoftmax",
    "Selection",
    "Softmax",
    "fidelity",
]
