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

    Raises:
        ValueError: the cache folder cannot be written, and what is wanted is not in it.
    """
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / digest
    if intact(folder):  # a cache that is shared may be read-only
        return folder
    try:
        _make(folder, intact, write)
    except OSError as error:
        path = Path(os.fsdecode(error.filename or root))
        within = path == root or root in path.parents or path in root.parents
        remedy = "; data.cache_dir or $HEADCOUNT_CACHE names a folder that can be written" if within else ""
        raise ValueError(f"{path}: {error.strerror or error}{remedy}") from error
    return folder


def _make(folder: Path, intact: Callable[[Path], bool], write: Callable[[Path], None]) -> None:
    root, digest = folder.parent, folder.name
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{digest}.lock"):
        if not intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            making = root / f"{digest}.making"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            write(making)
            making.rename(folder)
