"""Imports without garbage collection. This module imports no torch.

Modules live as long as their process, but Python's collector traverses their objects again and again while more modules
are imported, and once more when the process ends. For torch and Lightning this takes 2 s. `gc.freeze` exempts the
objects of the imports from later collections too.
"""

import gc
import importlib
from collections.abc import Sequence


def begin_imports() -> None:
    """Switch the collector off, until `end_imports`."""
    gc.disable()


def end_imports() -> None:
    """Exempt all objects so far from collection, and switch the collector on."""
    gc.freeze()
    gc.enable()


def import_all(names: Sequence[str]) -> None:
    """Import modules without garbage collection."""
    begin_imports()
    for name in names:
        importlib.import_module(name)
    end_imports()
