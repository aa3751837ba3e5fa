"""Finished runs, read from their folders and held against each other."""
