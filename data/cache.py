"""Cached folders: computed once, and kept."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


def cache_folder(path: str | None = None) -> Path:
    """Return `path`, or by default $HEADCOUNT_CACHE or ~/.cache/headcount."""
    return Path(path or os.environ.get("HEADCOUNT_CACHE") or Path.home() / ".cache" / "headcount").expanduser()


def cached(root: Path, identity: dict[str, Any], intact: Callable[[Path], bool], write: Callable[[Path], None]) -> Path:
    """Return the folder under `root` with an identity, and write it first if it is missing or damaged.

    A lock ensures that one process at a time writes it.

    Args:
        identity: all that determines the content, as JSON values.
        intact: returns whether a folder is complete and undamaged.
        write: fills an empty folder.

    Raises:
        ValueError: the folder is missing or damaged, and `root` cannot be written.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / digest
    if intact(folder):  # checked before locking, since a shared cache may be read-only
        return folder
    try:
        _make(folder, intact, write)
    except OSError as error:
        path = Path(os.fsdecode(error.filename or root))
        within = path == root or root in path.parents or path in root.parents
        remedy = "; set data.cache_dir or $HEADCOUNT_CACHE to a writable folder" if within else ""
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
