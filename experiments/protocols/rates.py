"""Rates of verification: which share of pairs is accepted, at every threshold that makes a difference.

A pair is accepted if its score is at least the threshold. Nothing is binned and nothing interpolated: pairs of equal
score are accepted together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from . import Same, Scores, rate

Weights = NDArray[np.float64]


def check(scores: Scores, same: Same, what: str = "pairs") -> None:
    """Raises ValueError for scores that cannot be judged."""
    if scores.shape != same.shape or scores.ndim != 1:
        raise ValueError(f"{what}: {list(scores.shape)} scores and {list(same.shape)} answers; one of each is needed")
    if np.isnan(scores).any():
        raise ValueError(f"{what}: {int(np.isnan(scores).sum()):,} of {len(scores):,} scores are NaN")
    if not same.any():
        raise ValueError(f"{what}: none is of one class; without positives nothing can be accepted rightly")
    if same.all():
        raise ValueError(f"{what}: all are of one class; without negatives nothing can be accepted wrongly")


@dataclass(frozen=True)
class Rates:
    """Of each cut, from accepting nothing to accepting all.

    Args:
        thresholds: (T,), falling; the first is inf.
        far: share of the pairs of different classes that are accepted, (T,).
        tar: share of the pairs of one class that are accepted, (T,).
    """

    thresholds: Scores
    far: Scores
    tar: Scores

    def tar_at(self, far: float) -> float:
        """The largest true accept rate at which the false accept rate is at most `far`."""
        return float(self.tar[self.far <= far].max())

    @property
    def eer(self) -> float:
        """The equal error rate: the mean of both errors at the cut where they differ least."""
        nearest = np.argmin(np.abs(self.far - (1 - self.tar)))
        return float(self.far[nearest] + 1 - self.tar[nearest]) / 2

    @property
    def auc(self) -> float:
        """The probability that a pair of one class scores higher than one of two; a half for equal scores."""
        return float(np.diff(self.far) @ (self.tar[1:] + self.tar[:-1]) / 2)


def unresolved(rates: Sequence[float], negatives: int, prefix: str) -> list[str]:
    """A note on rates below one of so many, which all say the same: what comes before the first error."""
    low = [f"{prefix}{rate(each)}" for each in rates if each * negatives < 1]
    return [
        f"{', '.join(low)}: of {negatives:,} none may be accepted; more would be needed to tell rates so low"
    ] * bool(low)


class Ranking:
    """Pairs by falling score, sorted once, for rates under any weights."""

    def __init__(self, scores: Scores, same: Same):
        self.order = np.argsort(-scores, kind="stable")
        falling = scores[self.order]
        self.same = same[self.order]
        last = np.append(falling[1:] != falling[:-1], True)  # of the pairs of its score
        self.ends = np.flatnonzero(last)
        self.thresholds = np.concatenate([[np.inf], falling[self.ends]])

    def accepted(self, weights: Weights | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights of the accepted pairs of one class and of two, at each cut (T,)."""
        w = np.ones(len(self.order)) if weights is None else weights[self.order]
        right, wrong = np.cumsum(w * self.same), np.cumsum(w * ~self.same)
        return np.append(0.0, right[self.ends]), np.append(0.0, wrong[self.ends])

    def rates(self, weights: Weights | None = None) -> Rates:
        """NaN where the weights leave no pair of one class, or of two."""
        right, wrong = self.accepted(weights)
        with np.errstate(invalid="ignore"):
            return Rates(self.thresholds, wrong / wrong[-1], right / right[-1])

    @cached_property
    def plain(self) -> Rates:
        return self.rates()
