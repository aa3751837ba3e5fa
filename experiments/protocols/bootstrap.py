"""Bootstrap confidence intervals (Efron 1979): metrics recomputed on units drawn with replacement.

The units are what a repetition of the experiment would draw again: identities where they are known, since images of
one identity are correlated, and pairs otherwise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..tables import shown

LEVEL = 0.95

Counts = NDArray[np.float64]


def draws(strata: Sequence[int], resamples: int, seed: int = 0) -> Iterator[Counts]:
    """Yield for each resample how often each unit is drawn, (sum of strata,). The sizes of the strata are kept."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        parts = [np.bincount(generator.integers(0, size, size), minlength=size) for size in strata if size]
        yield np.concatenate(parts).astype(np.float64)


def intervals(
    metrics: Callable[[Counts], Mapping[str, float]], strata: Sequence[int], resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95% percentile interval of each metric; an empty dict if `resamples` is 0.

    Args:
        metrics: maps the weights of the units to metrics. Resamples for which a metric is NaN are ignored.
        strata: the number of units of each kind.
        resamples: the number of draws.
        seed: seed of the draws.
    """
    if not resamples:
        return {}
    resampled = [metrics(weights) for weights in shown(draws(strata, resamples, seed), "Bootstrap", resamples)]
    percentiles = (50 - 50 * LEVEL, 50 + 50 * LEVEL)
    result = {}
    for name in resampled[0]:
        values = np.array([metrics_of_draw[name] for metrics_of_draw in resampled])
        values = values[~np.isnan(values)]
        if len(values):
            low, high = np.percentile(values, percentiles)
            result[name] = (float(low), float(high))
    return result
