"""Times of the parts of a head's step, on CPU and, without synchronizing the queue, on CUDA."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Timer:
    """Sum milliseconds by part of a step. "forward/query" is a part of "forward"; each "update" counts as a step."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all times."""
        self._total: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def __getstate__(self) -> dict[str, Any]:
        self._collect(wait=True)  # CUDA events can be neither copied nor pickled
        return self.__dict__

    @contextmanager
    def __call__(self, part: str, device: torch.device) -> Iterator[None]:
        """Measure the time of a with-block as a part."""
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((part, begin, end))
            self._collect(wait=False)
        else:
            begin_seconds = time.perf_counter()
            yield
            self._total[part] += 1e3 * (time.perf_counter() - begin_seconds)
        self._steps += part == "update"

    def milliseconds(self) -> dict[str, float]:
        """Return the mean milliseconds per step: `forward_ms`, `backward_ms`, `update_ms` and their sum `step_ms`."""
        self._collect(wait=True)
        means = {part: total / max(self._steps, 1) for part, total in sorted(self._total.items())}
        whole = sum(mean for part, mean in means.items() if "/" not in part)
        return {**{f"{part.rpartition('/')[2]}_ms": mean for part, mean in means.items()}, "step_ms": whole}

    def _collect(self, wait: bool) -> None:
        """Add the times of events that have passed, so that a long run keeps few events."""
        while self._events and (wait or self._events[0][2].query()):
            part, begin, end = self._events.pop(0)
            end.synchronize()
            self._total[part] += begin.elapsed_time(end)
