"""Options that protocols share, checked as those of `data.options`."""

from typing import Any

from data.options import several, whole


def ranks_of(option: str, value: Any) -> tuple[int, ...]:
    """One rank, or several."""
    values = several(value)
    if not values:
        raise ValueError(f"{option}={value}: a rank, or several, are needed")
    return tuple(whole(option, each, 1) for each in values)


def rates_of(option: str, value: Any) -> tuple[float, ...]:
    """One rate in (0, 1), or several."""
    values = several(value)
    if not values or not all(isinstance(each, int | float) and 0 < each < 1 for each in values):
        raise ValueError(f"{option}={value}: rates in (0, 1) are needed")
    return tuple(map(float, values))
