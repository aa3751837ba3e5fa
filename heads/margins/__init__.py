"""Margins: what a head does to the cosines before the softmax."""

from .arcface import ArcFace
from .combined import CombinedMargin
from .cosface import CosFace
from .margin import Margin, checked_margin
from .softmax import Softmax
from .sv_softmax import SVSoftmax

__all__ = ["ArcFace", "CombinedMargin", "CosFace", "Margin", "SVSoftmax", "Softmax", "checked_margin"]
