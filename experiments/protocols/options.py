"""Options of protocols, checked."""

from collections.abc import Sequence
from typing import Any

from data.images import absolute


def whole(option: str, value: Any, least: int) -> int:
    """Raises ValueError unless it is a whole number, at least `least`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    if not is_number or value != int(value) or value < least:
        raise ValueError(f"{option}={value}: a whole number, at least {least}, is needed")
    return int(value)


def flag(option: str, value: Any) -> bool:
    """Raises ValueError for what is neither true nor false, such as the word `no`."""
    if not isinstance(value, bool):
        raise ValueError(f"{option}={value}: must be true or false")
    return value


def path_of(option: str, value: Any) -> str | None:
    """One path, absolute; None for None."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ValueError(f"{option}={value}: one path is needed")
    return absolute(value)


def paths_of(option: str, value: Any) -> list[str]:
    """One path, several or none, absolute."""
    values = _several(value) if not isinstance(value, str) else [value]
    if (value is not None and not values) or not all(isinstance(each, str) and each for each in values):
        raise ValueError(f"{option}={value}: a path, or several, are needed")
    return [absolute(each) for each in values]


def ranks_of(option: str, value: Any) -> tuple[int, ...]:
    """One rank, or several."""
    values = _several(value)
    if not values:
        raise ValueError(f"{option}={value}: a rank, or several, are needed")
    return tuple(whole(option, each, 1) for each in values)


def rates_of(option: str, value: Any) -> tuple[float, ...]:
    """One rate in (0, 1), or several."""
    values = _several(value)
    if not values or not all(isinstance(each, int | float) and 0 < each < 1 for each in values):
        raise ValueError(f"{option}={value}: rates in (0, 1) are needed")
    return tuple(map(float, values))


def _several(value: Any) -> list[Any]:
    if value is None or isinstance(value, str):
        return []
    return list(value) if isinstance(value, Sequence) else [value]
