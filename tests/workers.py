"""Process groups for tests: gloo workers that run for the whole session, one group per world size."""

import gc
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from heads import none
from heads.indexes import class_graph
from heads.objectives import softmax

SIZES = ((softmax, "CHUNK_ROWS"), (class_graph, "EXCHANGED_ROWS"), (none, "BLOCK"))


class WorkerGroup:
    """Worker processes that run module-level functions."""

    def __init__(self, world_size: int):
        self.world_size = world_size
        self.folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.preloaded"])
        self.pipes, self.processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (rank, world_size, f"file://{self.folder.name}/store", theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a module-level function in every process and return the results in rank order."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        results = [pipe.recv() for pipe in self.pipes]
        failures = [f"rank {rank}:\n{trace}" for rank, (_, trace) in enumerate(results) if trace]
        if failures:
            raise AssertionError("\n".join(failures))
        return [result for result, _ in results]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)
        self.folder.cleanup()


def _serve(rank: int, world_size: int, store: str, pipe: Any) -> None:
    gc.enable()  # off in the process that this one is a fork of
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
    while (job := pipe.recv()) is not None:
        function, arguments = job
        try:
            with sizes_kept():
                result = function(*arguments)
            pipe.send((result, None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
    if world_size > 1:
        dist.destroy_process_group()


@contextmanager
def sizes_kept() -> Iterator[None]:
    """Restore the sizes that tests make smaller, so that the next test in this process has the usual ones."""
    before = [(module, name, getattr(module, name)) for module, name in SIZES]
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def rank_and_world() -> tuple[int, int]:
    """Return the rank and the world size inside a worker."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
