"""The journal of a conversion, by which an interrupted one resumes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..catalogs.catalog import Catalog
from ..files import write_whole
from .options import Options
from .writers import State

MAY_CHANGE = ("verify", "on_corrupt", "num_workers", "cache_dir")  # options that may differ when a conversion resumes


class Journal:
    """The progress of a conversion, saved in its folder.

    Args:
        folder: the folder of the unfinished target.
        source, options: the conversion.

    Attributes:
        state: the last saved state; empty at the beginning.

    Raises:
        ValueError: the folder holds another conversion.
    """

    def __init__(self, folder: Path, source: Catalog, options: Options):
        self.path, self.identity = folder / "journal.json", identity(source, options)
        self.state: State = {}
        if self.path.exists():
            saved = json.loads(self.path.read_text())
            if saved["of"] != self.identity:
                raise ValueError(f"{folder} holds another unfinished conversion; remove it, or finish that one first")
            self.state = saved["state"]

    def save(self, state: State) -> None:
        """Replace the saved state."""
        self.state = state
        write_whole(self.path, json.dumps({"of": self.identity, "state": state}))


def identity(source: Catalog, options: Options) -> dict[str, Any]:
    """Return the source and the options that determine what a conversion writes."""
    determining = {name: value for name, value in asdict(options).items() if name not in MAY_CHANGE}
    return dict(json.loads(json.dumps({**determining, "catalog": source.folder.name})))
