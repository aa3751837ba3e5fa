"""Checks of options. Each returns the checked value, and raises ValueError with the option and its value."""

import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any

NUMBERS: tuple[Any, ...] = (Integral, float)  # with numpy's integers


def whole(option: str, value: Any, least: int) -> int:
    """Return a whole number of at least `least`; 1e7 is accepted."""
    is_number = isinstance(value, NUMBERS) and not isinstance(value, bool) and abs(value) < 2**63
    if not is_number or value != int(value) or value < least:
        raise ValueError(f"{option}={value} must be a whole number of at least {least}")
    return int(value)


def flag(option: str, value: Any) -> bool:
    """Return true or false; words such as `no` are refused."""
    if not isinstance(value, bool):
        raise ValueError(f"{option}={value} must be true or false")
    return value


def path_of(option: str, value: Any) -> str | None:
    """Return one absolute path, or None for None. A number is a file name, since a command line parses 2024 as one."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{option}={value} must be one path")
    return absolute(str(value))


def paths_of(option: str, value: Any) -> list[str]:
    """Return absolute paths, given as one path, several or none."""
    paths = [path_of(option, item) for item in several(value)]
    if (value is not None and not paths) or None in paths:
        raise ValueError(f"{option}={value} must be a path or a list of paths")
    return [path for path in paths if path is not None]


def several(value: Any) -> list[Any]:
    """Return a list of one, several or no values."""
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def absolute(path: str) -> str:
    """Return an absolute path. Links are not resolved, so files next to a link are searched next to it."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
