"""`bench=stall`: the time that training steps wait for the index of `head=forest`, built in the background or blocking.

The time is that of a whole step: batch of `data=sphere`, MLP, head, and both updates.
"""

import time
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from heads import CosFace, HashingForest
from heads.indexes import IVF, Annoy, Index

from .training import SphereTraining

INDEXES: dict[str, type[Index]] = {"annoy": Annoy, "ivf": IVF}


def stall(
    num_classes: int,
    embedding_size: int,
    num_active: float,
    batch: int,
    index: list[str],
    interval: int,
    steps: int,
    warmup: int,
) -> list[dict[str, Any]]:
    """Return a line for each index and each way to build it.

    `p99_over_median` compares step times, and `of_blocking_share` the slowest step with the slowest one of blocking.
    The first build is included: with blocking, the first step waits for it; in the background, the first steps have no
    index.
    """
    if unknown := sorted(set(index) - set(INDEXES)):
        raise ValueError(f"bench.index={unknown} must be among {', '.join(INDEXES)}")
    lines: list[dict[str, Any]] = []
    for name, build in product(index, ("blocking", "background")):
        head = HashingForest(
            num_classes,
            embedding_size,
            num_active=num_active,
            index=INDEXES[name](),
            interval=interval,
            build=build,
            margin=CosFace(s=16, m=0.2),
        )
        times, ages = _trained(head, batch, steps, warmup)
        median, p99 = np.percentile(times, [50, 99])
        slowest_of_blocking = max(times) if build == "blocking" else lines[-1]["slowest_ms"]
        lines.append(
            {
                "index": name,
                "build": build,
                "num_classes": num_classes,
                "embedding_size": embedding_size,
                "step_ms": float(median),
                "p99_ms": float(p99),
                "slowest_ms": max(times),
                "p99_over_median": float(p99 / median),
                "of_blocking_share": max(times) / slowest_of_blocking,
                "build_seconds": head.index_refresh.seconds,
                "mean_age": float(np.mean(ages)) if ages else 0.0,
                "steps_before_index": len(times) - len(ages),
                "total_seconds": sum(times) / 1e3,
            }
        )
    return lines


def _trained(head: HashingForest, batch: int, steps: int, warmup: int) -> tuple[list[float], list[int]]:
    """Return the milliseconds of each step after the warm-up, and the age in steps of its index if there was one."""
    training = SphereTraining(head, batch, 0.02, steps)
    times, ages, begin = [], [], time.perf_counter()
    for number, images, labels in training.batches():
        share = 0.0 if number < warmup else 1.0  # no index during the warm-up
        head.options = replace(head.options, neighbours_share=share)
        training.step(number, images, labels)
        now = time.perf_counter()
        if number >= warmup:
            times.append(1e3 * (now - begin))
            ages += [head.step - head.index_refresh.as_of] if head.index_refresh.current else []
        begin = now
    head.index_refresh.wait()
    return times, ages
