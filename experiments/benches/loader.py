"""`bench=loader`: training batches of the built-in sets, ready for the backbone."""

from typing import Any

from data.glyphs import glyphs
from data.sphere import sphere
from data.streams import BatchLoader, InstanceStream

from .measure import median_and_spread, timed


def loader(sets: list[str], batch: int, num_workers: list[int], warmup: int, repeats: int) -> list[dict[str, Any]]:
    """A line for each set and number of workers: milliseconds a batch, images a second."""
    builders = {"glyphs": glyphs, "sphere": lambda: sphere(10_000)}
    lines = []
    for name in sets:
        if name not in builders:
            raise ValueError(f"bench.sets={name}: must be among {', '.join(builders)}")
        stream = InstanceStream(builders[name](), batch)
        for workers in num_workers:
            batches = iter(BatchLoader({"instance": stream}, warmup + repeats, batch, workers))
            for _ in range(warmup):
                next(batches)
            times = [timed(lambda: next(batches))[0] for _ in range(repeats)]  # noqa: B023
            milliseconds, spread = median_and_spread(times)
            lines.append(
                {
                    "set": name,
                    "num_workers": workers,
                    "batch": batch,
                    "step_ms": milliseconds,
                    "spread_ms": spread,
                    "images_per_second": 1e3 * batch * repeats / sum(times),
                }
            )
    return lines
