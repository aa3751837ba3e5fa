"""`bench=sampling`: PartialFC's selection of classes, compared with a random number for every class."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from heads import PartialFC

from .baselines import by_topk
from .head_step import active
from .measure import median_and_spread, ratio, timed


def sampling(
    num_classes: list[int], sample_rate: list[float], batch: int, warmup: int, repeats: int
) -> list[dict[str, Any]]:
    """Return a line for each number of classes, rate and way. `topk` is the published way, O(C) per step."""
    lines = []
    for C in map(int, num_classes):
        head = PartialFC(C, 1)
        for rate in sample_rate:
            head.options = replace(head.options, sample_rate=rate)
            count = active(rate, C)
            times: Mapping[str, list[float]] = {"pfc": [], "topk": []}
            for repeat in range(warmup + repeats):
                head.step = repeat
                labels = torch.randint(C, (batch,))
                embeddings = torch.zeros(batch, 1)
                ours = timed(partial(head.select_classes, embeddings, labels))[0]
                topk = timed(partial(by_topk, C, count, labels))[0]
                if repeat >= warmup:
                    times["pfc"].append(ours)
                    times["topk"].append(topk)
            for way, milliseconds in times.items():
                step, spread = median_and_spread(milliseconds)
                sizes = {"num_classes": C, "sample_rate": rate, "active": count}
                figures = {"step_ms": step, "spread_ms": spread, "over_first": ratio(milliseconds, times["pfc"])}
                lines.append({"head": way, **sizes, **figures})
    return lines
