"""The graph of nearest classes: for every class, the nearest rows of this process's shard.

It is built from the rows of all shards. Their exchange is a part of the training's own thread, chunk by chunk at the
same step of all processes, so that threads need no process group. Between the chunks each process searches its shard.

Legend: C classes, D row width, k neighbours of a class in this shard, M classes of a chunk.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..group.collectives import gather_rows, max_over_processes, rank_and_size
from ..objectives.rows import MIN_NORM, DenseRows, RowSequence
from ..objectives.softmax import chunks
from ..rows.class_rows import ClassRows
from .index import Index
from .refresh import Refresh, Work
from .vectors import CenterVectors

EXCHANGED_ROWS = 1024  # least number of rows of each process that are exchanged at a time; most that are searched for
SEARCHED_PAIRS = 2**30  # pairs of a query and a row, after which a search may be cancelled


def neighbours_per_shard(neighbours: int, num_classes: int, shard_size: int) -> int:
    """Return the number of neighbours that a shard holds of each class: its share of them, rounded up."""
    return min(-(-neighbours * shard_size // num_classes), shard_size)


@dataclass
class _Build:
    """A build: its parts in order, the one that runs, and the graph, int32 (C, k)."""

    step: int
    begin: float
    graph: Tensor
    parts: Iterator[Work[None]]
    work: Work[None] | None = None


class ClassGraph(Refresh[Tensor]):
    """The nearest rows of this process for each class of all processes, nearest first, without the class itself.

    The graph is an int32 tensor (C, k) in host memory; -1 where fewer rows were found. A build starts, fails and ends
    at the same step on all processes.

    Args:
        template: an index with the options of that which each build makes, searches and drops.
        centers: the rows.
        neighbours: number of neighbours of a class over all processes.
        normalize: whether rows are compared by their cosines. Otherwise the neighbours of a class have the highest
            logits, weights times weights plus bias, for an embedding equal to its weights.
        background: build during training. Otherwise `update` waits for the build.
    """

    thing: ClassVar[str] = "graph"

    def __init__(self, template: Index, centers: ClassRows, neighbours: int, *, normalize: bool, background: bool):
        super().__init__(background=background)
        self.template, self.centers, self.normalize = template, centers, normalize
        self.width = neighbours_per_shard(neighbours, centers.shard.num_classes, centers.shard.size)
        self._build: _Build | None = None
        self._agreed = False  # whether all processes have a graph, or none has; not known after loading

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which has the current graph and repeats a build that is running."""
        return {**self.__dict__, "_build": None, "_agreed": False, "failed": self.failed or self.running}

    @property
    def running(self) -> bool:
        """Return whether a build runs in the background."""
        return self._build is not None

    def update(self, *, step: int, interval: int, seed: int) -> None:
        """Adopt a finished graph, and start the next build if it is due. All processes must call it together.

        Args:
            step: optimizer step.
            interval: steps from this build to the next one.
            seed: seed of the index.

        Raises:
            RuntimeError: a build failed on one of the processes, and training waits for it.
        """
        if not self._agreed:
            self._agree_on_loaded(step)
        if self._build is None:
            self.repeat(step)
            if step < self.next_refresh:
                return
            self.next_refresh = step + interval
            graph = torch.full((self.centers.shard.num_classes, self.width), -1, dtype=torch.int32)
            self._build = _Build(step, time.perf_counter(), graph, self._parts(graph, interval, step=step, seed=seed))
        self._go_on()

    def neighbours(self, classes: Tensor) -> Tensor:
        """Return the nearest rows of this shard for classes (n,): int64 (n, k), on their device."""
        assert self.current is not None
        return self.current[classes.cpu()].to(classes.device, torch.int64)

    def wait(self) -> None:
        """Wait for a running build. All processes must call it together."""
        while self._build is not None:
            assert self._build.work is not None
            self._build.work.wait()
            self._go_on()

    def abandon(self) -> None:
        """Ask a running build to end early, and forget it."""
        if self._build is not None and self._build.work is not None:
            self._build.work.cancelled = True
        self._build = None

    def state_dict(self) -> dict[str, Any] | None:
        """Return the current graph; None without one."""
        if self.current is None:
            return None
        layout = {"layout": self._layout(), "as_of": self.as_of, "next_refresh": self.next_refresh}
        return {**layout, "graph": self.current}

    def load_state_dict(self, state: dict[str, Any] | None, step: int) -> None:
        """Load a graph of as many neighbours for the same rows; otherwise a new one is due at this step."""
        self.abandon()
        self._agreed = False
        if state is None or state["layout"] != self._layout():
            self.current, self.next_refresh = None, step
            return
        self.current, self.as_of, self.next_refresh = state["graph"].clone(), state["as_of"], state["next_refresh"]

    def _layout(self) -> list[int]:
        shard = self.centers.shard
        return [shard.start, shard.stop, shard.num_classes, self.width]

    def _agree_on_loaded(self, step: int) -> None:
        """Drop a loaded graph if another process has none, since all must build at the same steps."""
        lacking = torch.tensor([self.current is None], dtype=torch.int64, device=self.centers.like.device)
        if max_over_processes(lacking, self.centers.process_group).item() and self.current is not None:
            self.current, self.next_refresh = None, step
        self._agreed = True

    def _go_on(self) -> None:
        """Take the parts of the build that are due: all of them, or with `background` the next one."""
        build = self._build
        assert build is not None
        while True:
            if build.work is not None:
                is_busy, failed_rank = self._agree(build.work)
                if is_busy:
                    return
                build.work.wait()
                if failed_rank >= 0:
                    self._build = None
                    elsewhere = RuntimeError(f"process {failed_rank} could not build its part; see its message")
                    self.report(build.work.error or elsewhere)
                    return
            work = next(build.parts, None)
            if work is None:
                self._build = None
                self.adopt(build.graph, build.step, time.perf_counter() - build.begin)
                return
            build.work = work
            if self.background:
                return

    def _agree(self, work: Work[None]) -> tuple[bool, int]:
        """Return whether a process still works on its part, and the number of one that failed; -1 for none."""
        group = self.centers.process_group
        done = work.done
        rank = rank_and_size(group)[0] if done and work.error is not None else -1
        flags = torch.tensor([int(not done), rank], device=self.centers.like.device)
        is_busy, failed_rank = max_over_processes(flags, group).tolist()
        return bool(is_busy), failed_rank

    def _parts(self, graph: Tensor, interval: int, *, step: int, seed: int) -> Iterator[Work[None]]:
        """Yield the parts of a build as they begin: the index of this shard, and a search for each exchanged chunk."""
        index, background, chunk = self.template.empty_copy(), self.background, self.centers.shard.chunk

        def build(work: Work[None]) -> None:
            vectors = CenterVectors(self.centers, columns=self.centers.embedding_size if self.normalize else None)
            vectors.radius = 0.0 if self.normalize else max(vectors.longest(), MIN_NORM)
            index.build(vectors, seed=seed, step=step, background=background)

        yield Work(build, background=background)
        alone = self.centers.process_group is None
        for a, b in chunks(chunk, chunk if alone else max(EXCHANGED_ROWS, -(-chunk // interval))):
            classes_M, queries = self._exchanged(a, b)

            def search(work: Work[None], classes_M: Tensor = classes_M, queries: RowSequence = queries) -> None:
                at_once = max(16, min(EXCHANGED_ROWS, SEARCHED_PAIRS // self.centers.shard.size))
                for i, j in chunks(len(classes_M), at_once):
                    if work.cancelled:
                        return
                    graph[classes_M[i:j]] = self._nearest(index, classes_M[i:j], queries.slice(i, j))

            yield Work(search, background=background)

    def _exchanged(self, a: int, b: int) -> tuple[Tensor, RowSequence]:
        """Return the classes (M,) of rows a to b of all shards, and the vectors to search for (M, columns)."""
        own, group = self.centers.shard, self.centers.process_group
        shards = [replace(own, rank=rank) for rank in range(own.world_size)]
        sizes = [max(0, min(b, shard.size) - a) for shard in shards]
        starts = [shard.start + a for shard in shards]
        classes_M = torch.cat([torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])
        queries = _Queries(self.centers, self.normalize)
        if group is None:
            return classes_M, queries
        return classes_M, DenseRows(gather_rows(queries.slice(a, a + sizes[own.rank]), sizes, group))

    def _nearest(self, index: Index, classes_M: Tensor, queries_MD: Tensor) -> Tensor:
        """Return the nearest rows without the class itself, int32 (M, k)."""
        nearest_MK = index.query(queries_MD, self.width + 1).cpu()
        is_own_MK = nearest_MK == self.centers.shard.local(classes_M)[:, None]
        others_first_MK = is_own_MK.to(torch.int8).argsort(dim=1, stable=True)
        return nearest_MK.gather(1, others_first_MK)[:, : self.width].to(torch.int32)


class _Queries:
    """Vectors, float32, whose nearest rows are the neighbours of the rows of this shard."""

    def __init__(self, centers: ClassRows, normalize: bool):
        self.centers, self.normalize = centers, normalize

    def __len__(self) -> int:
        return self.centers.shard.size

    def slice(self, a: int, b: int) -> Tensor:
        weights_kD = self.centers.read(slice(a, b)).float()[:, : self.centers.embedding_size]
        if self.normalize:
            return normalize(weights_kD, eps=MIN_NORM)
        bias_and_radius = weights_kD.new_tensor([1.0, 0.0]).expand(len(weights_kD), 2)
        return torch.cat([weights_kD, bias_and_radius], dim=1)
