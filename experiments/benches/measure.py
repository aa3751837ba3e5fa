"""Honest timing: interleaved repeats, medians with spread, and memory of a process of its own."""

import multiprocessing
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

TURN = 0.2

Step = Callable[[], Mapping[str, float]]  # one step: part -> milliseconds


class Subject:
    """What is measured, built and run in a process of its own so that memory is its own too.

    Args:
        build: module-level function of `options` that returns a step.
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
        """Steps for so long, one at least: the median of each part."""
        steps: list[dict[str, float]] = []
        end = time.perf_counter() + seconds
        while not steps or time.perf_counter() < end:
            self.pipe.send("step")
            steps.append(self._answer())
        return {part: statistics.median(step[part] for step in steps) for part in steps[0]}

    def close(self) -> float:
        """Ends the process; its peak memory in bytes over what it held before building."""
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
    """A B A B ...: so that a drift of the machine meets all alike.

    A repeat is the median of the steps of TURN seconds, of one where it takes longer. Those before it are not
    counted: they find the caches full of the subject before, and a core still spinning for it.
    """
    for subject in subjects.values():
        for _ in range(warmup):
            subject.turn()
    for _ in range(repeats):
        for subject in subjects.values():
            subject.turn(TURN)
            for part, milliseconds in subject.turn(TURN).items():
                subject.parts.setdefault(part, []).append(milliseconds)


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """The median, and half the distance between the quartiles."""
    if len(values) < 2:
        return values[0], 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), (high - low) / 2


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median over the pairs that ran next to each other."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def timed(function: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Milliseconds of a call, and what it returned."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin), result


class PeakOwn:
    """The most memory of its own that this process holds while the block runs, in bytes: not files that are mapped,
    whose pages can go at any time. Asks every few milliseconds."""

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
    """Bytes resident that are backed by no file."""
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
    """VmRSS, resident now, VmHWM, the most ever resident, and parts of it; bytes, from Linux."""
    for line in Path("/proc", process, "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError(f"/proc/{process}/status tells no {name}")
