"""Protocols: how the field judges embeddings. One a file, chosen by config, after training or while it runs.

A protocol is built with its options, when what it reads from files is checked, and then called with a model, by all
processes together, as often as wanted. It embeds each image once, on one of the processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from ..build import build
from ..model import Model


@dataclass(frozen=True)
class Result:
    """What a protocol has found of one set.

    Args:
        name: of the set.
        metrics: figures, most telling first.
        intervals: of some of them, where 95 of 100 repetitions on such data would lie (bootstrap).
        counts: of what was judged.
        curves: to be plotted: rates of verification, scores, and the share found up to each rank.
    """

    name: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    counts: Mapping[str, int]
    curves: Mapping[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """A protocol with its options."""

    def __call__(self, model: Model) -> Sequence[Result]:
        """On the first process; nothing on the others.

        Raises:
            ValueError: on all processes.
        """
        ...


def told(result: Result) -> dict[str, float]:
    """Metrics by name, with the ends of their intervals."""
    ends = {
        f"{name}_{end}": value
        for name, both in result.intervals.items()
        for end, value in zip(("low", "high"), both, strict=True)
    }
    return {**result.metrics, **ends}


def judges_of(config: DictConfig) -> list[Judge]:
    """What `protocol=` asks for, with its files looked at."""
    return [build(node) for node in (config.get("protocol") or {}).values()]


def rate(value: float) -> str:
    """As part of a metric's name: 0.001 -> 1e-3."""
    return np.format_float_scientific(value, trim="-", exp_digits=1)


def checked_rates(option: str, values: Sequence[float]) -> tuple[float, ...]:
    """Raises ValueError unless all lie in (0, 1)."""
    rates = tuple(map(float, [values] if isinstance(values, int | float) else values))
    if not all(0 < each < 1 for each in rates):
        raise ValueError(f"{option}={list(rates)}: rates in (0, 1) are needed")
    return rates


Scores = NDArray[np.float64]
Same = NDArray[np.bool_]
