"""Indexes that find the class centers nearest to an embedding."""

from .annoy import Annoy
from .exact import Exact
from .index import Index
from .ivf import IVF

__all__ = ["IVF", "Annoy", "Exact", "Index"]
