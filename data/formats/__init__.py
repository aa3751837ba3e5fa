"""Readers of image files, lists of pairs and lists of templates."""
