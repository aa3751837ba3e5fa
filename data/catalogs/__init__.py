"""Catalogs: memory-mapped tables of the images of a source, their places and their classes."""
