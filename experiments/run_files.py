"""Reading of the files of a run, which may be damaged or malicious. Imports no torch.

Folders of results are passed around. Their files may be cut off, damaged, from another program, or made to do harm.
"""

import io
import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

MOST_BYTES = 2**24  # largest size of a config or a summary; a usual one has some thousand bytes
MOST_LEVELS = 50


class DamagedError(ValueError):
    """A file exists but is not of the kind that its name indicates. The message begins with its name."""


def text(path: Path) -> str:
    """Return the text of a small file.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: it cannot be read.
        DamagedError: it is a pipe, a device or a folder, it is too large, or it is not UTF-8.
    """
    if (size := _check_regular(path)) > MOST_BYTES:
        raise DamagedError(f"{path.name} is damaged: it has {size:,} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DamagedError(f"{path.name} is damaged: it is not text") from None


def config(path: Path) -> DictConfig:
    """Return the config in a YAML file that this program wrote.

    Raises:
        OSError: the file does not exist, or cannot be read.
        DamagedError: it is not such a config.
    """
    written = text(path)
    try:
        _check_shape(written, path.name)
        options = OmegaConf.load(io.StringIO(written))
        OmegaConf.to_container(options)  # parses all of it
    except DamagedError:
        raise
    except OSError:  # OmegaConf raises it for a file that holds a number
        options = None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path.name} is damaged: {_one_line(error)}") from None
    if not isinstance(options, DictConfig):
        raise DamagedError(f"{path.name} is damaged: it holds no options")
    return options


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text of any length, without null bytes from a killed writer. Raise the errors of `text`."""
    _check_regular(path)
    with path.open(newline="", encoding="utf-8") as file:
        for line in file:
            yield line.replace("\0", "")


def summary(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raise the errors of `config`."""
    try:
        content = json.loads(text(path))
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is damaged: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path.name} is damaged: it holds no object")
    return content


def is_number(value: Any) -> bool:
    """Return whether a value is a number that fits into a float; true and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_whole(value: Any, least: int = 0) -> bool:
    """Return whether a value is a whole number that a float holds exactly."""
    return is_number(value) and math.isfinite(value) and value == int(value) and least <= value <= 2**53


def _check_regular(path: Path) -> int:
    """Return the size of a file. Raise DamagedError for a pipe or a device, whose reading may block or never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{path.name} is not a regular file")
    return status.st_size


def _check_shape(written: str, name: str) -> None:
    """Raise DamagedError for a YAML text with aliases or deep nesting, before objects are built from it.

    Aliases of aliases let a few lines fill the memory. This program writes none.
    """
    level = 0
    for event in yaml.parse(written, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise DamagedError(f"{name} is damaged: it has aliases (*{event.anchor})")
        if level > MOST_LEVELS:
            raise DamagedError(f"{name} is damaged: it is nested over {MOST_LEVELS} levels deep")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
