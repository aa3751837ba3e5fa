"""The files of a set in several files, and the parts of a set that must not be mixed."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

PARTS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
PART = re.compile(rf"({'|'.join(PARTS)})([-_.\d]|$)", re.IGNORECASE)


def shards_of(path: str, ending: str) -> list[str]:
    """Return the files of a set, sorted by name.

    Args:
        path: one file, a folder of files, or a pattern such as `set/train-*.tar`.
        ending: ending of the files in a folder.

    Raises:
        ValueError: there is no such file, or a folder has files of several parts.
    """
    if Path(path).is_dir():
        files = sorted(str(file) for file in Path(path).rglob(f"*{ending}") if file.is_file())
        if not files:
            raise ValueError(f"{path} contains no file that ends in {ending}")
        parts = parts_of(Path(file).name for file in files)
        if len(parts) > 1:
            raise ValueError(
                f"{path} contains files of several parts: {', '.join(parts)}; name those of one, such as "
                f"{path}/{'**/' if Path(files[0]).parent != Path(path) else ''}{parts[0]}*{ending}"
            )
        return files
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    files = sorted(matching(path))
    if not files:
        raise ValueError(f"no file matches {path}")
    return files


def exists(path: str) -> bool:
    """Return whether there is a file or folder, or a file that matches the pattern."""
    return Path(path).exists() or (glob.has_magic(path) and bool(matching(path)))


def matching(pattern: str) -> list[str]:
    """Return the files and folders that match a pattern."""
    return glob.glob(pattern, recursive=True)  # noqa: PTH207, since Path.glob takes relative patterns only


def parts_of(names: Iterable[str]) -> list[str]:
    """Return the parts, such as train and test, that the names of files or folders begin with; [] unless all do."""
    matches = [PART.match(name) for name in names]
    return sorted({match[1].lower() for match in matches if match}) if all(matches) else []
