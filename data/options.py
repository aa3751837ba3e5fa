"""Options, checked: each function returns the value as it is used, and raises ValueError naming option and value."""

import os
from collections.abc import Sequence
from typing import Any


def whole(option: str, value: Any, least: int) -> int:
    """A whole number, also one written as 1e7."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    if not is_number or value != int(value) or value < least:
        raise ValueError(f"{option}={value}: a whole number, at least {least}, is needed")
    return int(value)


def flag(option: str, value: Any) -> bool:
    """True or false, and no word such as `no`."""
    if not isinstance(value, bool):
        raise ValueError(f"{option}={value}: must be true or false")
    return value


def path_of(option: str, value: Any) -> str | None:
    """One path, absolute; None for None. A number is the name of a file: a command line reads 2024 as one."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{option}={value}: one path is needed")
    return absolute(str(value))


def paths_of(option: str, value: Any) -> list[str]:
    """One path, several or none, absolute."""
    found = [path_of(option, each) for each in several(value)]
    if (value is not None and not found) or None in found:
        raise ValueError(f"{option}={value}: a path, or several, are needed")
    return [path for path in found if path is not None]


def several(value: Any) -> list[Any]:
    """What may be one, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def absolute(path: str) -> str:
    """Links stay: what lies beside a file is looked for beside the link."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
