"""Verification rates: the shares of pairs that are accepted, at every threshold that changes them.

A pair is accepted if its score is at least the threshold. Scores are neither binned nor interpolated, and pairs of
equal score are accepted together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from . import Same, Scores, format_rate

Weights = NDArray[np.float64]


def check_pairs(scores: Scores, same: Same, name: str = "pairs") -> None:
    """Raise ValueError for scores from which no rates can be computed.

    Args:
        scores: (n,).
        same: whether each pair is of one class, (n,).
        name: the set, for messages.
    """
    if scores.shape != same.shape or scores.ndim != 1:
        raise ValueError(
            f"{name} has {list(scores.shape)} scores and {list(same.shape)} labels; each pair needs one of both"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{name} has NaN in {int(np.isnan(scores).sum()):,} of {len(scores):,} scores")
    if not same.any():
        raise ValueError(f"{name} has no pair of one class; verification needs positive pairs")
    if same.all():
        raise ValueError(f"{name} has no pair of two classes; verification needs negative pairs")


@dataclass(frozen=True)
class Rates:
    """Rates at each cut, from accepting no pair to accepting all.

    Args:
        thresholds: (T,), descending. The first is inf.
        far: false accept rates (T,): the accepted share of the pairs of two classes.
        tar: true accept rates (T,): the accepted share of the pairs of one class.
    """

    thresholds: Scores
    far: Scores
    tar: Scores

    def tar_at(self, far: float) -> float:
        """Return the largest true accept rate whose false accept rate is at most `far`."""
        return float(self.tar[self.far <= far].max())

    @property
    def eer(self) -> float:
        """The equal error rate: the mean of both error rates at the cut where they differ least."""
        nearest = np.argmin(np.abs(self.far - (1 - self.tar)))
        return float(self.far[nearest] + 1 - self.tar[nearest]) / 2

    @property
    def auc(self) -> float:
        """The probability that a pair of one class scores above a pair of two; equal scores count one half."""
        return float(np.diff(self.far) @ (self.tar[1:] + self.tar[:-1]) / 2)


def notes_on_low_rates(rates: Sequence[float], num_negatives: int, prefix: str) -> list[str]:
    """Return a note on the rates below one in `num_negatives`, which no threshold can resolve; [] if there are none."""
    low = [f"{prefix}{format_rate(rate)}" for rate in rates if rate * num_negatives < 1]
    if not low:
        return []
    return [f"{', '.join(low)}: none of {num_negatives:,} negatives may be accepted; such low rates need more of them"]


class Ranking:
    """Pairs sorted once by descending score, for rates under any weights."""

    def __init__(self, scores: Scores, same: Same):
        self.order = np.argsort(-scores, kind="stable")
        descending = scores[self.order]
        self.same = same[self.order]
        is_last = np.append(descending[1:] != descending[:-1], True)  # whether a pair is the last with its score
        self.ends = np.flatnonzero(is_last)
        self.thresholds = np.concatenate([[np.inf], descending[self.ends]])

    def accepted(self, weights: Weights | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weight of the accepted pairs of one class and of two classes, at each cut (T,)."""
        w = np.ones(len(self.order)) if weights is None else weights[self.order]
        right, wrong = np.cumsum(w * self.same), np.cumsum(w * ~self.same)
        return np.append(0.0, right[self.ends]), np.append(0.0, wrong[self.ends])

    def rates(self, weights: Weights | None = None) -> Rates:
        """Return the rates; NaN if the weights leave no pair of one class, or none of two."""
        right, wrong = self.accepted(weights)
        with np.errstate(invalid="ignore"):
            return Rates(self.thresholds, wrong / wrong[-1], right / right[-1])

    @cached_property
    def unweighted(self) -> Rates:
        """The rates of all pairs with equal weights."""
        return self.rates()
