"""The memory floor: the least memory that any head holds, and which heads hold it."""

import statistics
from dataclasses import dataclass

from ..tables import readable_bytes
from .comparison import Comparison
from .figures import MEMORY


@dataclass(frozen=True)
class Floor:
    """The least memory of a head, in bytes, and a sentence on it."""

    bytes: float
    sentence: str


def memory_floor(comparison: Comparison, problem: str) -> Floor | None:
    """Return the memory floor of a problem; None if fewer than two heads have measured their memory."""
    of_head: dict[str, float] = {}
    for group, values in zip(comparison.groups, comparison.columns(MEMORY), strict=True):
        if values and group.problem == problem:
            of_head[group.head] = min(statistics.fmean(values), of_head.get(group.head, float("inf")))
    if len(of_head) < 2:
        return None
    least = min(of_head.values())
    sentence = f"Memory floor: {_holders(of_head, least)}"
    above = [value for value in of_head.values() if value > 0]
    if least == 0 and above:
        sentence += f"; the least above 0: {_holders(of_head, min(above))}"
    return Floor(least, sentence)


def _holders(of_head: dict[str, float], value: float) -> str:
    """Return a value with the heads that have it."""
    return f"{readable_bytes(value)} ({', '.join(head for head, memory in of_head.items() if memory == value)})"
