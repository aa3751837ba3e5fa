"""Figures that are compared: their names in summary.json and metrics.csv, and how they are shown."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure of a run.

    Args:
        name: in summary.json.
        title: title of its column.
        more_is_better: None if neither more nor less is.
        is_curve: whether it is measured repeatedly while training, so that it has a value at any point.
        meaning: what it is, in a few words.
    """

    name: str
    title: str
    more_is_better: bool | None
    is_curve: bool = False
    meaning: str = ""

    @property
    def kind(self) -> str:
        """One of quality, fidelity and cost."""
        group = self.name.partition("/")[0]
        return {"val": "quality", "train": "quality", "fidelity": "fidelity"}.get(group, "cost")

    @property
    def is_share(self) -> bool:
        """True for shares of correct answers, which are compared in points."""
        return self.name.startswith(("val/", "train/top1"))


TIME = Figure("time", "training s", False, meaning="seconds of training up to the point of the comparison")
MEMORY = Figure("memory/head_bytes", "head memory", False, meaning="bytes of the rows of the head and of their state")
FIGURES = (
    Figure(
        "val/rank1",
        "rank-1",
        True,
        is_curve=True,
        meaning="share of held-out images whose nearest other image shows the same class",
    ),
    Figure(
        "val/tar_at_far_1e-3",
        "TAR@FAR 1e-3",
        True,
        is_curve=True,
        meaning="share of same-class pairs accepted at the threshold that accepts one in 1,000 others",
    ),
    Figure(
        "val/verification_accuracy",
        "verification",
        True,
        is_curve=True,
        meaning="share of pairs judged correctly at the best threshold",
    ),
    Figure("train/exact_loss", "exact loss", False, is_curve=True, meaning="loss of training images over all classes"),
    Figure(
        "train/top1",
        "top-1",
        True,
        is_curve=True,
        meaning="share of training images whose own class is the nearest of all",
    ),
    Figure(
        "train/loss",
        "own loss",
        None,
        is_curve=True,
        meaning="the head's own loss; those of two heads are not comparable",
    ),
    TIME,
    Figure("throughput/images_per_second", "images/s", True, meaning="training images per second, without pauses"),
    Figure("head/step_ms", "head ms/step", False, meaning="milliseconds of forward, backward and update of the head"),
    Figure("head/active_classes", "active classes", None, meaning="classes that took part in the last step"),
    MEMORY,
    Figure("memory/peak_bytes", "peak memory", False, meaning="peak memory of the whole process"),
    Figure(
        "fidelity/mass",
        "mass",
        True,
        is_curve=True,
        meaning="share of the exact softmax's negatives in the active classes",
    ),
    Figure(
        "fidelity/gradient_cosine",
        "gradient cosine",
        True,
        is_curve=True,
        meaning="cosine between the gradient and the exact one",
    ),
    Figure(
        "fidelity/gradient_norm_ratio",
        "gradient norm ratio",
        None,
        is_curve=True,
        meaning="length of the gradient over that of the exact one",
    ),
    Figure(
        "fidelity/gradient_bias",
        "gradient bias",
        False,
        is_curve=True,
        meaning="systematic error of the gradient, over the length of the exact one",
    ),
    Figure(
        "fidelity/gradient_variance",
        "gradient variance",
        False,
        is_curve=True,
        meaning="variance of the gradient over draws",
    ),
    Figure(
        "fidelity/hardest_recall",
        "hardest recall",
        True,
        is_curve=True,
        meaning="share of the hardest negatives that are active",
    ),
    Figure(
        "fidelity/class_means_cosine",
        "cosine to class means",
        None,
        is_curve=True,
        meaning="cosine to the gradient of a softmax over mean embeddings of classes",
    ),
    Figure(
        "fidelity/class_means_norm_ratio",
        "norm ratio to class means",
        None,
        is_curve=True,
        meaning="length of the gradient over that of the same softmax",
    ),
)
# How the last part of a protocol's metric begins, if more of it is better. The metrics are named val/SET/METRIC.
MORE_IS_BETTER = (
    "accuracy",
    "rank",
    "tar_at",
    "val_at",
    "tpir",
    "map",
    "auc",
    "top",
    "r_precision",
    "precision",
    "recall",
)


def figure_of_protocol(name: str) -> Figure | None:
    """Return the figure of a protocol's metric; None for interval ends, errors and metrics of which less is better."""
    metric = name.rpartition("/")[2]
    if not metric.startswith(MORE_IS_BETTER) or metric.endswith(("_low", "_high", "_se")):
        return None
    return Figure(name, name.removeprefix("val/"), True, is_curve=True)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation; None for the deviation of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_option(value: Any) -> str:
    """Format the value of an option as a user writes it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
