"""Decide whether two groups of runs differ by more than their noise, and whether they are equivalent.

Groups whose runs share seeds and data order are compared by a paired t-test, others by Welch's (1947), which allows the
noise of the groups to differ. If there is no difference, either claims one in about 5 % of the cases, also with three
runs each; a percentile bootstrap would claim one in 20 %. Several claims together are corrected by Holm (1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Name = TypeVar("Name")

LEVEL = 0.95
ROUNDING = 1e-9  # deviations below this share of the values are rounding errors


@dataclass(frozen=True)
class Difference:
    """Difference of two means, first minus second.

    Attributes:
        mean: the difference.
        interval: its 95 % interval; None if a group has one run only.
        p: probability of a difference at least as large if there is none; None without an interval.
        paired: whether run i of the first group was compared with run i of the second.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float | None = None
    paired: bool = False

    @property
    def beyond_noise(self) -> bool | None:
        """True if the interval excludes 0; None without an interval."""
        return None if self.interval is None else not self.interval[0] <= 0 <= self.interval[1]

    def within(self, reach: float) -> bool | None:
        """Return whether the means are no further apart than `reach`, by two one-sided tests; None without an interval.

        The whole 95 % interval must lie within (Schuirmann 1987, at a level of 2.5 %).
        """
        return None if self.interval is None else -reach <= self.interval[0] and self.interval[1] <= reach

    def reversed(self) -> "Difference":
        """Return the difference second minus first."""
        ends = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return Difference(-self.mean, ends, self.p, self.paired)


@dataclass(frozen=True)
class Verdict:
    """A difference, judged together with others.

    Attributes:
        difference: the difference of two means.
        p_holm: its p-value, corrected for the number of differences; None without an interval.
        equivalent: whether the two are no further apart than the points of the comparison.
    """

    difference: Difference
    p_holm: float | None
    equivalent: bool

    @property
    def beyond_noise(self) -> bool | None:
        """True if the corrected p-value is at most 0.05; None without an interval."""
        return None if self.p_holm is None else self.p_holm <= 1 - LEVEL


def verdicts(gaps: Mapping[Name, Difference], reach: float | None) -> dict[Name, Verdict]:
    """Judge several differences together.

    Args:
        gaps: the differences by name.
        reach: how far apart equivalent ones may be; None for figures in which nothing counts as equivalent.
    """
    corrected = iter(holm([gap.p for gap in gaps.values() if gap.p is not None]))
    return {
        name: Verdict(
            gap,
            p_holm=None if gap.p is None else next(corrected),
            equivalent=reach is not None and bool(gap.within(reach)),
        )
        for name, gap in gaps.items()
    }


def difference(first: Sequence[float], second: Sequence[float], *, paired: bool = False) -> Difference:
    """Compare two groups of at least one run each.

    Args:
        first, second: a value of each run.
        paired: run i of both groups has the same seed and data order.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Difference(mean, None, paired=paired)
    error, freedom = _paired(a - b) if paired else _welch(a, b)
    if error <= ROUNDING * max(abs(a).max(), abs(b).max()):
        return Difference(mean, (mean, mean), float(mean == 0), paired)
    from scipy.special import stdtr, stdtrit  # loads in a tenth of the time of scipy.stats

    reach = error * float(stdtrit(freedom, (1 + LEVEL) / 2))
    p = 2 * float(stdtr(freedom, -abs(mean) / error))
    return Difference(mean, (mean - reach, mean + reach), p, paired)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in the same order.

    The probability that any of the values without a difference falls below 0.05 is then at most 5 %.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.minimum(1, factors * np.asarray(p_values)[order]))
    return [float(value) for value in corrected]


def _paired(gaps: NDArray[np.float64]) -> tuple[float, float]:
    """Return the standard error of the mean gap, and its degrees of freedom."""
    return float(gaps.std(ddof=1) / np.sqrt(len(gaps))), len(gaps) - 1


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Return the standard error of a difference of means, and the degrees of freedom of Welch and Satterthwaite."""
    squared = np.array([group.var(ddof=1) / len(group) for group in (a, b)])
    total = squared.sum()
    freedom = total**2 / (squared**2 / (len(a) - 1, len(b) - 1)).sum() if total else 1.0
    return float(np.sqrt(total)), float(freedom)
