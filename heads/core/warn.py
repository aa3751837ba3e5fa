"""Warnings that point to the user's own line."""

import sys
import warnings
from pathlib import Path

import torch

LIBRARIES = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning from the innermost frame outside of this package and torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
