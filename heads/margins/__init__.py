"""Margins: what a head does to the cosines before its objective."""

from .adacos import FixedAdaCos
from .adaface import AdaFace
from .arcface import ArcFace
from .batch import MarginBatch
from .class_margin import ClassMargin
from .combined import CombinedMargin
from .cosface import CosFace
from .curricularface import CurricularFace
from .elasticface import ElasticFace
from .magface import MagFace
from .margin import Margin, begun, checked_margin
from .softmax import Softmax
from .sphereface import SphereFace
from .sv_softmax import SVSoftmax

__all__ = [
    "AdaFace",
    "ArcFace",
    "ClassMargin",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "ElasticFace",
    "FixedAdaCos",
    "MagFace",
    "Margin",
    "MarginBatch",
    "SVSoftmax",
    "Softmax",
    "SphereFace",
    "begun",
    "checked_margin",
]
