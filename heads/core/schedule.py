"""Options that may change during training: a number, or a mapping {step: number} that holds from each step on."""

from collections.abc import Mapping

Schedule = float | Mapping[int, float]


def value_at(schedule: Schedule, step: int) -> float:
    """Return the value at an optimizer step."""
    if isinstance(schedule, Mapping):
        return schedule[max(start for start in schedule if start <= step)]
    return schedule


def check_schedule(name: str, schedule: Schedule, least: float) -> list[float]:
    """Return all values of a schedule.

    Args:
        name: name of the option, for messages.
        schedule: a number, or {step: number}, which must begin at step 0.
        least: lower bound of each value.

    Raises:
        ValueError: a step is not a whole number, step 0 is missing, or a value is not a number of at least `least`.
    """
    if isinstance(schedule, Mapping) and (0 not in schedule or not all(isinstance(step, int) for step in schedule)):
        raise ValueError(f"{name}={dict(schedule)} must have whole numbers as steps and begin at step 0")
    values = list(schedule.values()) if isinstance(schedule, Mapping) else [schedule]
    for value in values:
        if not isinstance(value, int | float):
            raise ValueError(f"{name}={value!r} must be a number, or {{step: number}} to change it from each step on")
        if not value >= least:
            raise ValueError(f"{name}={value} must be at least {least}")
    return values
