"""Large-classification heads: from embeddings to a loss over 10^4 to 10^8 classes.

The package needs torch and numpy only, and works in any training loop::

    backbone = torch.nn.Linear(32, 64)
    head = PartialFC(num_classes=20_000, embedding_size=64, sample_rate=0.1, margin=CosFace(s=16, m=0.2))
    optimizers = [torch.optim.SGD(backbone.parameters(), lr=0.1), head.optimizer(lr=0.1)]
    for images, labels in loader:
        loss = head(backbone(images), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    cosines, classes = head.topk(backbone(images), k=5)

Heads: `FullFC`, `PartialFC`, `HashingForest`, `KNNSoftmax`, `Scent`, `Prototypes`, `VirtualFC`, `FFC`,
`NoCenters`. In a process group, each process passes its own batch and holds its own share of the classes.
`help(PartialFC)` lists the options of a head.
"""

from . import fidelity
from .center_head import CenterHead
from .ffc import FFC
from .forest import HashingForest
from .full import FullFC
from .head import Head
from .indexes import IVF, Annoy, Exact, Index
from .knn import KNNSoftmax
from .mach import MACH
from .margins import (
    AdaFace,
    ArcFace,
    ClassMargin,
    CombinedMargin,
    CosFace,
    CurricularFace,
    ElasticFace,
    FixedAdaCos,
    MagFace,
    Margin,
    Softmax,
    SphereFace,
    SVSoftmax,
)
from .none import NoCenters
from .objectives import BCE, CrossEntropy, Objective, QMargin, SphereFace2, UniFace
from .pfc import PartialFC
from .prototypes import Prototypes
from .rows.optimizers import RowAdagrad, RowAdamW, RowSGD
from .rows.row_optimizer import RowOptimizer
from .scent import Scent
from .selection.selection import Selection
from .staged import Staged
from .subcenter import SubCenterFC
from .virtual import VirtualFC

__version__ = "0.3.0"  # the version of the whole project; both pyproject.toml files read it

__all__ = [
    "BCE",
    "FFC",
    "IVF",
    "MACH",
    "AdaFace",
    "Annoy",
    "ArcFace",
    "CenterHead",
    "ClassMargin",
    "CombinedMargin",
    "CosFace",
    "CrossEntropy",
    "CurricularFace",
    "ElasticFace",
    "Exact",
    "FixedAdaCos",
    "FullFC",
    "HashingForest",
    "Head",
    "Index",
    "KNNSoftmax",
    "MagFace",
    "Margin",
    "NoCenters",
    "Objective",
    "PartialFC",
    "Prototypes",
    "QMargin",
    "RowAdagrad",
    "RowAdamW",
    "RowOptimizer",
    "RowSGD",
    "SVSoftmax",
    "Scent",
    "Selection",
    "Softmax",
    "SphereFace",
    "SphereFace2",
    "Staged",
    "SubCenterFC",
    "UniFace",
    "VirtualFC",
    "fidelity",
]
