"""Bootstrap confidence intervals (Efron 1979): the same figures of data drawn again, with replacement, from the data.

What is drawn is what would come anew in a repetition: identities where they are known, since the images of one are
alike, and pairs otherwise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..tables import shown

LEVEL = 0.95

Counts = NDArray[np.float64]


def draws(strata: Sequence[int], resamples: int, seed: int = 0) -> Iterator[Counts]:
    """How often each unit is drawn, (sum of strata,), for each resample; of every stratum as many as it has."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        parts = [np.bincount(generator.integers(0, size, size), minlength=size) for size in strata if size]
        yield np.concatenate(parts).astype(np.float64)


def intervals(
    metrics: Callable[[Counts], Mapping[str, float]], strata: Sequence[int], resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of 95% of each metric; none for `resamples=0`.

    Args:
        metrics: of weighted units. NaN for weights of which it cannot be told; those are left out.
        strata: how many units of each kind there are.
    """
    if not resamples:
        return {}
    found = [metrics(weights) for weights in shown(draws(strata, resamples, seed), "Bootstrap", resamples)]
    sides = (50 - 50 * LEVEL, 50 + 50 * LEVEL)
    result = {}
    for name in found[0]:
        values = np.array([each[name] for each in found])
        values = values[~np.isnan(values)]
        if len(values):
            low, high = np.percentile(values, sides)
            result[name] = (float(low), float(high))
    return result
