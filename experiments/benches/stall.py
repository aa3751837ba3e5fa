"""`bench=stall`: how long a training step waits for the index of `head=forest`, built in the background or blocking.

A whole step is timed: batch of `data=sphere`, MLP, head, both updates.
"""

import time
from dataclasses import replace
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
    """A line for each index and way of building it.

    `p99_over_median` is of the steps' times; `of_blocking_share` the slowest step over that of blocking. The first
    index is among what is timed: blocking waits for it at the first step, the background has none for a while.
    """
    unknown = sorted(set(index) - set(INDEXES))
    if unknown:
        raise ValueError(f"bench.index={unknown}: must be among {', '.join(INDEXES)}")
    lines = []
    for name in index:
        slowest = {}
        for build in ("blocking", "background"):
            head = HashingForest(
                num_classes,
                embedding_size,
                num_active=num_active,
                index=INDEXES[name](),
                interval=interval,
                build=build,
                margin=CosFace(s=16, m=0.2),
            )
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
            slowest[build] = max(times)
            median, p99 = np.percentile(times, [50, 99])
            lines.append(
                {
                    "index": name,
                    "build": build,
                    "num_classes": num_classes,
                    "embedding_size": embedding_size,
                    "step_ms": float(median),
                    "p99_ms": float(p99),
                    "slowest_ms": slowest[build],
                    "p99_over_median": float(p99 / median),
                    "of_blocking_share": slowest[build] / slowest["blocking"],
                    "build_seconds": head.index_refresh.seconds,
                    "mean_age": float(np.mean(ages)) if ages else 0.0,
                    "steps_before_index": len(times) - len(ages),
                    "total_seconds": sum(times) / 1e3,
                }
            )
    return lines
