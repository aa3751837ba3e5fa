"""Large-classification heads: from embeddings to a loss over 10^4 to 10^8 classes.

Needs torch and numpy only, and serves in any training loop.
"""

from .ffc import FFC
from .forest import HashingForest
from .full import FullFC
from .head import CenterHead, Head, Selection
from .margins import ArcFace, CombinedMargin, CosFace, Margin, Softmax, SVSoftmax
from .optim import RowAdagrad, RowAdamW, RowOptimizer, RowSGD
from .pfc import PartialFC

__all__ = [
    "FFC",
    "ArcFace",
    "CenterHead",
    "CombinedMargin",
    "CosFace",
    "FullFC",
    "HashingForest",
    "Head",
    "Margin",
    "PartialFC",
    "RowAdagrad",
    "RowAdamW",
    "RowOptimizer",
    "RowSGD",
    "SVSoftmax",
    "Selection",
    "Softmax",
]
