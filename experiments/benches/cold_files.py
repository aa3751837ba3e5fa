"""Steps on rows that earlier steps have written, and that are on the disk, not in memory."""

import gc
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from .measure import Step


def cold_files(build: Callable[[], Step], folder: str, cycle: int) -> Step:
    """Return a step that touches its rows a second time, and reads them from the disk.

    The same `cycle` steps, with the same batches and samples, run again and again. The first time, unmeasured, they
    write their rows to sparse files. Before each further time the files are closed, written to the disk, dropped from
    the page cache, and opened by a new head. So a step reads each page that it touches once more.

    Args:
        build: returns the step of a new head, which opens the files of `folder`.
        folder: folder of the files.
        cycle: number of steps until rows are touched again.

    Returns:
        A step with a further part, "read_bytes": what the process has read from the disk.
    """
    steps = _measured(build, Path(folder), cycle)
    return lambda: next(steps)


def _measured(build: Callable[[], Step], folder: Path, cycle: int) -> Iterator[Mapping[str, float]]:
    step = _first(build)
    for _ in range(cycle):
        step()
    while True:
        del step
        gc.collect()  # the head, which has the files open
        drop_pages(folder)
        step = _first(build)
        for _ in range(cycle):
            before = read_bytes()
            parts = step()
            yield {**parts, "read_bytes": read_bytes() - before}


def _first(build: Callable[[], Step]) -> Step:
    """Return the step of a new head after a first one, which gets the memory that later ones use again."""
    step = build()
    torch.manual_seed(0)  # of the batches; the head's selection depends on its own seed and the number of the step
    step()
    return step


def drop_pages(folder: Path) -> None:
    """Write the tables of a folder to the disk and drop them from the page cache. No process may have them open."""
    for path in folder.rglob("*.bin"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only clean pages can be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_bytes() -> float:
    """Return the bytes that this process has read from disks."""
    return 512.0 * resource.getrusage(resource.RUSAGE_SELF).ru_inblock
