"""Options that may change during training: a number, or a mapping {step: number} that holds from each step on.

Steps are those of the head's optimizer, counted from 0. Values are resolved by `value_at` and nowhere else.
"""

from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

Schedule = float | Mapping[int, float]


def value_at(schedule: Schedule, step: int) -> float:
    """Return the value at an optimizer step."""
    if isinstance(schedule, Mapping):
        return schedule[max(start for start in schedule if start <= step)]
    return schedule


def values_of(schedule: Schedule) -> list[float]:
    """Return all values in the order of their steps, that of step 0 first."""
    return [schedule[step] for step in sorted(schedule)] if isinstance(schedule, Mapping) else [schedule]


def is_schedule(value: object) -> bool:
    """Return whether a value is a mapping from steps to numbers."""
    return isinstance(value, Mapping) and all(isinstance(step, int) and _is_number(value[step]) for step in value)


def plain(name: str, schedule: Any) -> Any:
    """Return a number unchanged, and a schedule as a dict in the order of its steps.

    Args:
        name: name of the option, for messages.
        schedule: a number, or {step: number}, which must begin at step 0.

    Raises:
        ValueError: a step is not a whole number of at least 0, or step 0 is missing.
    """
    if not isinstance(schedule, Mapping):
        return schedule
    steps = list(schedule)
    if 0 not in steps or not all(_is_number(step) and step >= 0 and step == int(step) for step in steps):
        raise ValueError(f"{name}={dict(schedule)} must have whole numbers as steps and begin at step 0")
    return {int(step): schedule[step] for step in sorted(steps)}


def check_schedule(name: str, schedule: Schedule, least: float) -> list[float]:
    """Return all values of a schedule.

    Args:
        name: name of the option, for messages.
        schedule: a number, or {step: number}, which must begin at step 0.
        least: lower bound of each value.

    Raises:
        ValueError: a step is not a whole number, step 0 is missing, or a value is not a number of at least `least`.
    """
    values = values_of(plain(name, schedule))
    for value in values:
        if not _is_number(value):
            raise ValueError(f"{name}={value!r} must be a number, or {{step: number}} to change it from each step on")
        if not value >= least:
            raise ValueError(f"{name}={value} must be at least {least}")
    return values


def declares_number(declared: Any) -> bool:
    """Return whether the declared type of an option, or its text, is a number or a union with one."""
    if isinstance(declared, str):
        members: tuple[Any, ...] = tuple(declared.split(" | "))
    else:
        members = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
    return any(member in (float, int, "float", "int") for member in members)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, bool | str)
