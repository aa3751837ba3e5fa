"""Approximate search by a forest of random hyperplane trees (Annoy)."""

import atexit
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.options import documented, option
from ..core.schedule import Schedule, check_schedule, value_at, values_of
from ..objectives.softmax import chunks
from . import annoy_build
from .files import loaded_from, path_of, saved_bytes, unnamed_file
from .index import Index
from .vectors import READ_ROWS, Vectors, to_host

BYTES_PER_TREE = 11  # for each vector, as measured


@documented
@dataclass(eq=False)
class Annoy(Index):
    """A forest of random hyperplane trees for angular distance (github.com/spotify/annoy).

    It finds approximate neighbours, as in HF-Softmax (Zhang et al., AAAI 2018). A forest cannot be changed: `rebuilt`
    builds all trees again.

    Raises:
        TypeError: an unknown option.
        ValueError: an option out of range.

    Examples:
        >>> head = HashingForest(num_classes=1000, embedding_size=16, num_active=100, index=Annoy(num_trees=10))
    """

    refreshable = False
    library_attributes = ("forest",)

    num_trees: Schedule = option(
        50,
        "Trees; more of them find more neighbours and take longer to build. A number, or {step: number} to change it "
        "from each step on.",
    )
    search_k: int | None = option(None, "Candidates that a query compares. None for num_trees x requested neighbours.")
    threads: int = option(1, "Threads that build the forest. Another number of threads gives another forest.")

    def __post_init__(self) -> None:
        check_schedule("num_trees", self.num_trees, 1)
        if self.search_k is not None and self.search_k < 1:
            raise ValueError(
                f"search_k={self.search_k} must be at least 1; null compares num_trees x neighbours candidates"
            )
        if self.threads < 1:
            raise ValueError(f"threads={self.threads} must be at least 1")
        self.width = 0
        self.forest: Any = None

    def __len__(self) -> int:
        return 0 if self.forest is None else int(self.forest.get_n_items())

    def build(
        self, vectors: Vectors, *, seed: int = 0, step: int = 0, search_scale: float = 1.0, background: bool = False
    ) -> None:
        self.width = vectors.slice(0, 1).shape[1]
        num_trees = max(1, round(search_scale * value_at(self.num_trees, step)))
        if not background:
            self.forest = annoy_build.built(_read_all(vectors), num_trees, seed, self.threads)
            return
        with unnamed_file() as rows, unnamed_file() as forest:
            _write_npy(rows, vectors, self.width)
            options = [num_trees, seed, self.threads, os.getpid()]
            program = [sys.executable, "-P", annoy_build.__file__, path_of(rows), path_of(forest), *map(str, options)]
            # In a separate session the program does not receive Ctrl-C, which the training process handles.
            process = subprocess.Popen(
                program,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                pass_fds=(rows.fileno(), forest.fileno()),
            )
            atexit.register(process.kill)
            errors = process.communicate()[1]
            atexit.unregister(process.kill)
            if process.returncode < 0:
                raise RuntimeError(f"building the Annoy forest was ended by signal {-process.returncode}")
            if process.returncode:
                raise RuntimeError(f"building the Annoy forest ended with status {process.returncode}:\n{errors}")
            self._load(path_of(forest))

    def query(self, x_nD: Tensor, k: int) -> Tensor:
        neighbours = np.full((len(x_nD), k), -1, dtype=np.int64)
        queries = to_host(x_nD)
        search_k = -1 if self.search_k is None else self.search_k

        def answer(start: int) -> None:  # Annoy releases the interpreter's lock
            for number in range(start, len(queries), torch.get_num_threads()):
                nearest = self.forest.get_nns_by_vector(queries[number], k, search_k)
                neighbours[number, : len(nearest)] = nearest

        list(_threads(torch.get_num_threads()).map(answer, range(torch.get_num_threads())))
        return torch.from_numpy(neighbours).to(x_nD.device)

    def bytes_per_vector(self, width: int) -> float:
        # A vector with its header; each tree has at most one node of that size for about `width` vectors.
        return 4.0 * width + 16 + BYTES_PER_TREE * max(values_of(self.num_trees))

    def multiply_adds(self, count: int, width: int, k: int) -> float:
        candidates = self.search_k or max(values_of(self.num_trees)) * k
        return min(count, candidates) * width

    def state_dict(self) -> dict[str, Any]:
        forest = saved_bytes(self.forest.save)
        return {"width": self.width, "forest": forest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.width = state["width"]
        loaded_from(state["forest"], self._load)

    def _load(self, path: str) -> None:
        """Map the file into memory; the mapping outlives the file's name."""
        from annoy import AnnoyIndex

        self.forest = AnnoyIndex(self.width, "angular")
        self.forest.load(path)


def _write_npy(file: IO[bytes], vectors: Vectors, width: int) -> None:
    """Write vectors as .npy, without a mapping: on a full disk, that would kill the process without a message."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(vectors), width)}
    np.lib.format.write_array_header_1_0(file, header)
    for a, b in chunks(len(vectors), READ_ROWS):
        to_host(vectors.slice(a, b)).tofile(file)
    file.seek(0)


def _read_all(vectors: Vectors) -> NDArray[np.float32]:
    return np.concatenate([to_host(vectors.slice(a, b)) for a, b in chunks(len(vectors), READ_ROWS)])


@lru_cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="nearest")
