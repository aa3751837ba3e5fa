"""Evaluation protocols of the field, one a file. They are chosen by config and run after or during training.

A protocol is built with its options, when what it reads from files is checked, and then called with a model, by all
processes together, as often as wanted. It embeds each image once, on one of the processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from ..instantiate import instantiate
from ..models.model import Model


@dataclass(frozen=True)
class Result:
    """What a protocol has found of one set.

    Args:
        name: of the set.
        metrics: figures, most telling first.
        intervals: of some of them, where 95 of 100 repetitions on such data would lie (bootstrap).
        counts: of what was judged.
        notes: what must be known to read the figures.
        curves: to be plotted: rates of verification, scores, and the share found up to each rank.
    """

    name: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    counts: Mapping[str, int]
    notes: Sequence[str] = ()
    curves: Mapping[str, Any] = field(default_factory=dict)


class EvaluationProtocol(Protocol):
    """A protocol with its options."""

    @property
    def names(self) -> Sequence[str]:
        """Of the results that it gives."""
        ...

    def check(self, model: Model) -> None:
        """Before much is done: raises ValueError where it cannot judge such a model. Looks at one image of each set."""
        ...

    def __call__(self, model: Model) -> Sequence[Result]:
        """What it finds, on the first process; nothing on the others.

        Raises:
            ValueError: on all processes, or on the first when nobody waits for it any more.
        """
        ...


def metrics_with_ci(result: Result) -> dict[str, float]:
    """Metrics by name, with the ends of their intervals."""
    ends = {
        f"{name}_{end}": value
        for name, both in result.intervals.items()
        for end, value in zip(("low", "high"), both, strict=True)
    }
    return {**result.metrics, **ends}


def build_protocols(config: DictConfig) -> list[EvaluationProtocol]:
    """What `protocol=` asks for, with its files looked at."""
    protocols: list[EvaluationProtocol] = [instantiate(node) for node in (config.get("protocol") or {}).values()]
    names = [name for protocol in protocols for name in protocol.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"protocol.lfw.source: a list of pairs is called {name}, as another protocol; rename it")
    return protocols


def rate(value: float) -> str:
    """As part of a metric's name: 0.001 -> 1e-3."""
    return np.format_float_scientific(value, trim="-", exp_digits=1)


Scores = NDArray[np.float64]
Same = NDArray[np.bool_]
