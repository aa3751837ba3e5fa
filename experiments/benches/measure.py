"""Timing by interleaved repeats, medians with spread, and memory of separate processes."""

import multiprocessing
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TURN = 0.2
PARTS = ("forward", "backward", "update")  # of a training step

Step = Callable[[], Mapping[str, float]]  # runs one step and returns part -> milliseconds


class Subject:
    """One object of measurement, built and run in a separate process so that its memory can be measured.

    Args:
        build: module-level function that returns a step.
        options: arguments of `build`.
    """

    def __init__(self, build: Callable[..., Step], **options: Any):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, options), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()
        self.parts: dict[str, list[float]] = {}

    def turn(self, seconds: float = 0.0) -> dict[str, float]:
        """Run steps for so many seconds, at least one. Return the median of each part."""
        steps: list[dict[str, float]] = []
        end = time.perf_counter() + seconds
        while not steps or time.perf_counter() < end:
            self.pipe.send("step")
            steps.append(self._answer())
        return {part: statistics.median(step[part] for step in steps) for part in steps[0]}

    def close(self) -> float:
        """End the process. Return its peak memory in bytes above its memory before `build`."""
        self.pipe.send("end")
        peak: float = self._answer()
        self.process.join()
        return peak

    def _answer(self) -> Any:
        result, trace = self.pipe.recv()
        if trace:
            raise RuntimeError(f"a benchmark's process failed:\n{trace}")
        return result


def interleave(subjects: Mapping[str, Subject], warmup: int, repeats: int) -> None:
    """Measure subjects in turns, A B A B ..., so that a drift of the machine affects all equally.

    A repeat is the median of the steps within TURN seconds, or a single longer step. The steps of another TURN seconds
    before it do not count, because the caches and the cores are still busy with the subject before.
    """
    for subject in subjects.values():
        for _ in range(warmup):
            subject.turn()
    for _ in range(repeats):
        for subject in subjects.values():
            subject.turn(TURN)
            for part, milliseconds in subject.turn(TURN).items():
                subject.parts.setdefault(part, []).append(milliseconds)


@dataclass(frozen=True)
class Measured:
    """Training steps of a subject that ran in turns with those of the first one.

    Attributes:
        parts: part -> milliseconds of each repeat.
        over_first: time of a step, relative to that of the first subject next to it.
        peak_bytes: peak memory of its process.
    """

    parts: Mapping[str, list[float]]
    over_first: float
    peak_bytes: float

    @property
    def totals(self) -> list[float]:
        """Return the milliseconds of forward pass, backward pass and update in each repeat."""
        return step_times(self.parts)

    def figures(self) -> dict[str, float]:
        step, spread = median_and_spread(self.totals)
        times = {f"{part}_ms": statistics.median(self.parts[part]) for part in PARTS}
        return {**times, "step_ms": step, "spread_ms": spread, "peak_bytes": self.peak_bytes}


def compared(builds: Sequence[Callable[[], Subject]], warmup: int, repeats: int) -> list[Measured]:
    """Measure training steps of each subject in turns with the first one. At most two processes exist at a time."""
    build, *others = builds
    first = build()
    results = []
    for build_other in others:
        other = build_other()
        interleave({"first": first, "other": other}, warmup, repeats)
        beside = {part: values[-repeats:] for part, values in first.parts.items()}
        over = ratio(step_times(other.parts), step_times(beside))
        results.append(Measured(other.parts, over, other.close()))
    if not others:
        interleave({"first": first}, warmup, repeats)
    return [Measured(first.parts, 1.0, first.close()), *results]


def step_times(parts: Mapping[str, list[float]]) -> list[float]:
    return [sum(times) for times in zip(*(parts[part] for part in PARTS), strict=True)]


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """Return the median, and half the distance between the quartiles."""
    if len(values) < 2:
        return values[0], 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), (high - low) / 2


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median ratio of the pairs that ran next to each other."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def timed(function: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Return the milliseconds of a call, and its result."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin), result


class PeakOwn:
    """Context manager that records the peak memory of this process in bytes, sampled every few milliseconds.

    Mapped files do not count, because their pages can be dropped at any time.
    """

    def __enter__(self) -> "PeakOwn":
        self.peak, self._over = own_memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.003):
            self.peak = max(self.peak, own_memory())


def own_memory() -> float:
    """Return the resident bytes that no file backs."""
    return resident("RssAnon") + resident("RssShmem")


def _serve(pipe: Any, build: Callable[..., Step], options: dict[str, Any]) -> None:
    try:
        before = resident("VmRSS")
        step = build(**options)
        pipe.send((None, None))
        while pipe.recv() == "step":
            pipe.send((dict(step()), None))
        if torch.cuda.is_available() and options.get("device") == "cuda":
            pipe.send((float(torch.cuda.max_memory_allocated()), None))
        else:
            pipe.send((resident("VmHWM") - before, None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))


def resident(name: str, process: str = "self") -> float:
    """Return a figure of /proc/PID/status in bytes: VmRSS (resident), VmHWM (its peak), or RssAnon and RssShmem."""
    for line in Path("/proc", process, "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError(f"/proc/{process}/status has no {name}")
