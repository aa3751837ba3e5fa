"""Evaluation protocols of the field, one per file. They are chosen by config and run after or during training.

A protocol is built with its options, which checks the files that it reads. It is then called with a model, by all
processes together, any number of times. Each image is embedded once, on one of the processes.
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
    """Result of a protocol on one data set.

    Args:
        name: the data set.
        metrics: values by name, the most important first.
        intervals: 95% bootstrap intervals (low, high) of some of the metrics.
        counts: the number of images, pairs or templates that were evaluated, by name.
        notes: remarks that a reader needs to interpret the metrics.
        curves: data for plots: verification rates and scores, or the cumulative match characteristic.
    """

    name: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    counts: Mapping[str, int]
    notes: Sequence[str] = ()
    curves: Mapping[str, Any] = field(default_factory=dict)


class EvaluationProtocol(Protocol):
    """Interface of a protocol that has its options."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the results."""
        ...

    def check(self, model: Model) -> None:
        """Raise ValueError if the protocol cannot evaluate such a model.

        It is called before the expensive work, and reads one image of each set.
        """
        ...

    def __call__(self, model: Model) -> Sequence[Result]:
        """Return the results on the first process and an empty sequence on the others.

        Raises:
            ValueError: on all processes, or on the first alone once the others have finished.
        """
        ...


def metrics_with_ci(result: Result) -> dict[str, float]:
    """Return the metrics by name, and the ends of their intervals as NAME_low and NAME_high."""
    ends = {
        f"{name}_{end}": value
        for name, interval in result.intervals.items()
        for end, value in zip(("low", "high"), interval, strict=True)
    }
    return {**result.metrics, **ends}


def build_protocols(config: DictConfig) -> list[EvaluationProtocol]:
    """Build the protocols that `protocol=` selects, which checks their files."""
    protocols: list[EvaluationProtocol] = [instantiate(node) for node in (config.get("protocol") or {}).values()]
    names = [name for protocol in protocols for name in protocol.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"protocol.lfw.source has a list of pairs named {name}, which is also the name of another result; "
                "rename the file"
            )
    return protocols


def format_rate(value: float) -> str:
    """Format a rate as part of a metric's name: 0.001 -> 1e-3."""
    return np.format_float_scientific(value, trim="-", exp_digits=1)


Scores = NDArray[np.float64]
Same = NDArray[np.bool_]
