"""Checkpoints: their content, reading and writing, and where they are stored."""
