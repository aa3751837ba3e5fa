"""Margins: what is asked of the cosines before the softmax."""

from .margin import ArcFace, CombinedMargin, CosFace, Margin, Softmax, SVSoftmax, checked_margin

__all__ = ["ArcFace", "CombinedMargin", "CosFace", "Margin", "SVSoftmax", "Softmax", "checked_margin"]
