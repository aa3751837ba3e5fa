"""Checks of options that several protocols have, in the style of `data.options`."""

from typing import Any

from data.options import several, whole


def ranks_of(option: str, value: Any) -> tuple[int, ...]:
    """Return one rank or several as a tuple. Raise ValueError for anything else."""
    ranks = several(value)
    if not ranks:
        raise ValueError(f"{option}={value} must have at least one rank; [1,5] reports rank-1 and rank-5")
    return tuple(whole(option, rank, 1) for rank in ranks)


def rates_of(option: str, value: Any) -> tuple[float, ...]:
    """Return one rate in (0, 1) or several as a tuple. Raise ValueError for anything else."""
    rates = several(value)
    if not rates or not all(isinstance(rate, int | float) and 0 < rate < 1 for rate in rates):
        raise ValueError(f"{option}={value} must have at least one rate, each in (0, 1); 1e-3 is one in a thousand")
    return tuple(map(float, rates))
