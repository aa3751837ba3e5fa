"""Conversion to a URL: written to the cache folder first, then uploaded."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from rich.progress import Progress

from ..catalogs.catalog import Catalog
from ..files import write_whole
from ..formats.encoded import BadEntry
from .journal import identity
from .layout import companions
from .options import Options, target_format
from .report import Report
from .writing import already_exists, write


def upload(source: Catalog, options: Options, progress: Progress, cache: Path) -> Report:
    """Write the target to the cache folder and upload it. The same command repeats a failed upload."""
    url = str(options.target).rstrip("/")
    staging = cache / "uploads" / hashlib.sha256(json.dumps(identity(source, options)).encode()).hexdigest()[:16]
    staged, saved_report = staging / "made" / Path(url).name, staging / "report.json"
    try:
        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"target={url} cannot be opened: {error}") from error
    try:
        if not saved_report.exists():
            for remote in (path, *companions(path, target_format(options))):
                if files.exists(remote):
                    raise already_exists(url, remote)
            if staged.exists():
                shutil.rmtree(staging)  # complete, but interrupted before its report was saved
            report = write(source, options, staged, progress)
            write_whole(saved_report, json.dumps([report.classes, report.images, report.bytes, report.unreadable]))
        _put(files, staged, path, progress)
    except ValueError:
        raise
    except Exception as error:  # object stores raise errors of their own, for example for a missing bucket
        raise ValueError(f"target={url}: the upload failed: {error}; run the same command to resume it") from error
    classes, images, size, unreadable = json.loads(saved_report.read_text())
    shutil.rmtree(staging)
    return Report(classes, images, size, [BadEntry(*entry) for entry in unreadable])


def _put(files: Any, staged: Path, path: str, progress: Progress) -> None:
    """Upload a target's files.

    Args:
        files: the fsspec file system.
        staged: the local target, a folder or a file with others next to it.
        path: the target's path in the file system.
    """
    folder, below = (staged, path) if staged.is_dir() else (staged.parent, path.rpartition("/")[0])
    # Readers look for lists and indexes first, so these small files come last.
    paths = [file for file in folder.rglob("*") if file.is_file()]
    paths.sort(key=lambda file: (-file.stat().st_size, str(file)))
    task = progress.add_task("Uploading", total=sum(file.stat().st_size for file in paths))
    for file in paths:
        remote = f"{below}/{file.relative_to(folder).as_posix()}"
        if file.name != "property" or not files.exists(remote):
            files.makedirs(remote.rpartition("/")[0], exist_ok=True)
            files.put_file(str(file), remote)
        progress.advance(task, file.stat().st_size)
