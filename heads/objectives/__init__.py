"""Objectives: what a head asks of the logits, streamed over class rows; and exact top-k."""

from .bce import BCE
from .objective import Objective, checked_objective
from .qmargin import QMargin
from .softmax import CrossEntropy
from .sphereface2 import SphereFace2
from .uniface import UniFace

__all__ = ["BCE", "CrossEntropy", "Objective", "QMargin", "SphereFace2", "UniFace", "checked_objective"]
