"""Folders that are made once from something else, and kept."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


def cache_folder(given: str | None = None) -> Path:
    """`given`, or $HEADCOUNT_CACHE, or ~/.cache/headcount."""
    return Path(given or os.environ.get("HEADCOUNT_CACHE") or Path.home() / ".cache" / "headcount").expanduser()


def cached(root: Path, of: dict[str, Any], intact: Callable[[Path], bool], write: Callable[[Path], None]) -> Path:
    """The folder under `root` that belongs to `of`, made or made anew if need be; one process at a time makes it.

    Args:
        of: all that decides what is in it.
        intact: whether a folder is what was written.
        write: fills an empty folder.
    """
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / digest
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{digest}.lock"):
        if not intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            making = root / f"{digest}.making"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            write(making)
            making.rename(folder)
    return folder
