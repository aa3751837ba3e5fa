"""Indexes that find the class centers nearest to an embedding."""

from .index import IVF, Annoy, Exact, Index

__all__ = ["IVF", "Annoy", "Exact", "Index"]
