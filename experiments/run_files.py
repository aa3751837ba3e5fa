"""Files that a run left, read when anything may lie under their names. Imports no torch.

A folder of results is handed around: what is read there may be cut off, damaged, of another program, or made to harm.
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

MOST_BYTES = 2**24  # of a config or a summary; they have some thousand
MOST_LEVELS = 50


class DamagedError(ValueError):
    """A file is there and cannot be what it should be. The message is "NAME ..."."""


def text(path: Path) -> str:
    """Return what a small file holds.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        DamagedError: it is a pipe, a device or a folder, too large, or no UTF-8.
    """
    if (size := _check_regular(path)) > MOST_BYTES:
        raise DamagedError(f"{path.name} is damaged: it has {size:,} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DamagedError(f"{path.name} is damaged: it is no text") from None


def config(path: Path) -> DictConfig:
    """Return the config in a YAML file that this program wrote.

    Raises:
        OSError: there is none, or it cannot be read.
        DamagedError: it is no such config.
    """
    written = text(path)
    try:
        _check_shape(written, path.name)
        found = OmegaConf.load(io.StringIO(written))
        OmegaConf.to_container(found)  # looks at all of it
    except DamagedError:
        raise
    except OSError:  # what OmegaConf says of a number
        found = None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path.name} is damaged: {_one_line(error)}") from None
    if not isinstance(found, DictConfig):
        raise DamagedError(f"{path.name} is damaged: it holds no options")
    return found


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text of any length, without what a killed writer left of zeros. Raises as `text`."""
    _check_regular(path)
    with path.open(newline="", encoding="utf-8") as file:
        for line in file:
            yield line.replace("\0", "")


def summary(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises as `config`."""
    try:
        found = json.loads(text(path))
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is damaged: {_one_line(error)}") from None
    if not isinstance(found, dict):
        raise DamagedError(f"{path.name} is damaged: it holds no object")
    return found


def is_number(value: Any) -> bool:
    """Whether it is a number that fits into a float; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number that a float holds exactly."""
    return is_number(value) and math.isfinite(value) and value == int(value) and least <= value <= 2**53


def _check_regular(path: Path) -> int:
    """Return the size of a file. Raises DamagedError for what would block or never end: a pipe, a device."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError(f"{path.name} is no regular file")
    return found.st_size


def _check_shape(written: str, name: str) -> None:
    """Look at a YAML text as it is parsed, before anything is made of it.

    Aliases may stand for each other, so that a few lines become more than the memory holds; this program writes none.
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
