"""Nearest-class search: the interface of an index, and Annoy, IVF and exact search."""

from .annoy import Annoy
from .exact import Exact
from .index import Index
from .ivf import IVF

__all__ = ["IVF", "Annoy", "Exact", "Index"]
