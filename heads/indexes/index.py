"""Nearest class rows of an embedding: one interface, three indexes.

An index answers for the rows as they were when it was built. One that serves is not changed: `successor` makes
another for the rows as they are now, while this one goes on answering from another thread.
"""

import atexit
import os
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import IO, Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ..core.schedule import Schedule, check_schedule, value_at
from ..objectives.rows import MIN_NORM, RowSequence
from ..objectives.topk import streamed_topk
from ..rows.centers import ClassCenters
from . import annoy_build

READ_ROWS = 8192  # at a time, into a library's own memory
POINTS_PER_CENTROID = 64  # that k-means looks at

ANNOY_BYTES_OF_TREE = 11  # for each vector, as measured


class Vectors(RowSequence, Protocol):
    """What an index is built from: vectors of unit length, float32, on any device."""

    def gather(self, positions: Tensor) -> Tensor:
        """(k,) -> (k, D)"""
        ...


class TensorVectors:
    """A tensor (n, D) of vectors of any length."""

    def __init__(self, vectors: Tensor):
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def slice(self, a: int, b: int) -> Tensor:
        return normalize(self.vectors[a:b].float(), eps=MIN_NORM)

    def gather(self, positions: Tensor) -> Tensor:
        return normalize(self.vectors[positions].float(), eps=MIN_NORM)


class CenterVectors:
    """The rows of a shard, read when asked for, so that the highest cosine is the highest logit.

    Where the margin does not normalize, one more column brings all rows to the length `radius`, which turns the
    order by inner product into that by cosine (Bachrach et al., RecSys 2014); 0 for no such column.
    """

    def __init__(self, centers: ClassCenters, radius: float = 0.0):
        self.centers, self.radius = centers, radius

    def __len__(self) -> int:
        return self.centers.shard.size

    def slice(self, a: int, b: int) -> Tensor:
        return self._prepared(self.centers.read(slice(a, b)).float())

    def gather(self, positions: Tensor) -> Tensor:
        return self._prepared(self.centers.read(positions.to(self.centers.like.device)).float())

    def longest(self) -> float:
        """The length of the longest row."""
        return max(float(self.centers.read(slice(a, b)).norm(dim=1).max()) for a, b in stretches(len(self)))

    def _prepared(self, rows_kD: Tensor) -> Tensor:
        if self.radius:
            missing = (self.radius**2 - rows_kD.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
            rows_kD = torch.cat([rows_kD, missing], dim=1)
        return normalize(rows_kD, eps=MIN_NORM)


def stretches(count: int) -> Iterator[tuple[int, int]]:
    for a in range(0, count, READ_ROWS):
        yield a, min(a + READ_ROWS, count)


class Index(ABC):
    """Positions of the vectors of highest cosine. `build` once, then `query`."""

    refreshable: ClassVar[bool] = True
    library_attributes: ClassVar[tuple[str, ...]] = ()  # attributes that hold a library's objects
    radius: float = 0.0  # that `CenterVectors` had

    @abstractmethod
    def __len__(self) -> int:
        """Vectors it holds, 0 before `build`."""

    @abstractmethod
    def build(
        self, vectors: Vectors, *, seed: int = 0, step: int = 0, search_scale: float = 1.0, background: bool = False
    ) -> None:
        """Of all vectors.

        Args:
            step: of the training, for options that change with it.
            search_scale: factor on the number of trees or lists looked through.
            beside: another thread is at work that must not be held up.
        """

    @abstractmethod
    def query(self, x_nD: Tensor, k: int) -> Tensor:
        """Embeddings (n, D) -> int64 (n, k), nearest first; -1 where fewer were found."""

    def refresh(self, vectors: Vectors, changed: Tensor) -> None:
        """Takes in what these positions (m,) hold now."""
        raise ValueError(f"{type(self).__name__} cannot change what it holds: build it anew")

    def rebuilt(self, vectors: Vectors, changed: Tensor, **options: Any) -> "Index":
        """Another index, of the vectors as they are now; only those at `changed` differ from this one's.

        Takes the options of `build`.
        """
        index = self.empty_copy()
        index.build(vectors, **options)
        return index

    @abstractmethod
    def bytes_per_vector(self, width: int) -> float:
        """Memory that an index takes for each vector of this width."""

    @abstractmethod
    def multiply_adds(self, count: int, width: int, k: int) -> float:
        """Of a query for k neighbours among so many vectors of this width."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @abstractmethod
    def empty_copy(self) -> "Index":
        """With the same options, not built."""

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go through `state_dict`, since a library's objects may allow neither."""
        own = {name: None if name in self.library_attributes else value for name, value in self.__dict__.items()}
        return {"own": own, "built": self.state_dict() if len(self) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["own"])
        if state["built"] is not None:
            self.load_state_dict(state["built"])


class Exact(Index):
    """A matrix product with a copy of all vectors, where they live; the reference."""

    def __init__(self) -> None:
        self.rows_CD = torch.empty(0, 0)

    def __len__(self) -> int:
        return len(self.rows_CD)

    def build(
        self, vectors: Vectors, *, seed: int = 0, step: int = 0, search_scale: float = 1.0, background: bool = False
    ) -> None:
        for a, b in stretches(len(vectors)):
            part = vectors.slice(a, b)
            if a == 0:
                self.rows_CD = part.new_empty(len(vectors), part.shape[1])
            self.rows_CD[a:b] = part

    def query(self, x_nD: Tensor, k: int) -> Tensor:
        positions = streamed_topk(x_nD.to(self.rows_CD), _Matrix(self.rows_CD), k, normalize=False)[1]
        return _padded(positions, k).to(x_nD.device)

    def refresh(self, vectors: Vectors, changed: Tensor) -> None:
        self.rows_CD[changed.to(self.rows_CD.device)] = vectors.gather(changed).to(self.rows_CD)

    def rebuilt(self, vectors: Vectors, changed: Tensor, **options: Any) -> Index:
        index = Exact()
        index.rows_CD = self.rows_CD.clone()
        index.refresh(vectors, changed)
        return index

    def bytes_per_vector(self, width: int) -> float:
        return 4.0 * width

    def multiply_adds(self, count: int, width: int, k: int) -> float:
        return float(count * width)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows_CD}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows_CD = state["rows"].clone()

    def empty_copy(self) -> Index:
        return Exact()

    def __repr__(self) -> str:
        return "Exact()"


class Annoy(Index):
    """A forest of random hyperplane trees (github.com/spotify/annoy), angular, as HF-Softmax has it.

    It cannot be changed: a successor is built from the start.

    Args:
        num_trees: more find more, and take longer to build; a number, or {from this step on: number}.
        search_k: how many candidates a query looks at; num_trees x k unless given.
        threads: that build it. The forest depends on their number.
    """

    refreshable = False
    library_attributes = ("forest",)

    def __init__(self, num_trees: Schedule = 50, search_k: int | None = None, threads: int = 1):
        check_schedule("num_trees", num_trees, 1)
        if search_k is not None and search_k < 1:
            raise ValueError(f"search_k={search_k}: at least one candidate is needed; null for num_trees x k")
        if threads < 1:
            raise ValueError(f"threads={threads}: must be at least 1")
        self.num_trees, self.search_k, self.threads = num_trees, search_k, threads
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
            self.forest = annoy_build.built(_matrix(vectors), num_trees, seed, self.threads)
            return
        with _nameless() as rows, _nameless() as forest:
            _write(rows, vectors, self.width)
            options = [num_trees, seed, self.threads, os.getpid()]
            program = [sys.executable, "-P", annoy_build.__file__, _path(rows), _path(forest), *map(str, options)]
            # A session of its own: Ctrl-C is for the training to answer.
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
            self._load(_path(forest))

    def query(self, x_nD: Tensor, k: int) -> Tensor:
        found = np.full((len(x_nD), k), -1, dtype=np.int64)
        queries = _host(x_nD)
        search_k = -1 if self.search_k is None else self.search_k

        def answer(start: int) -> None:  # without the interpreter's lock
            for number in range(start, len(queries), torch.get_num_threads()):
                near = self.forest.get_nns_by_vector(queries[number], k, search_k)
                found[number, : len(near)] = near

        list(_threads(torch.get_num_threads()).map(answer, range(torch.get_num_threads())))
        return torch.from_numpy(found).to(x_nD.device)

    def bytes_per_vector(self, width: int) -> float:
        # A vector with its head; and of each tree, a node of that size for about `width` vectors at most.
        return 4.0 * width + 16 + ANNOY_BYTES_OF_TREE * value_at(self.num_trees, 0)

    def multiply_adds(self, count: int, width: int, k: int) -> float:
        candidates = self.search_k or value_at(self.num_trees, 0) * k
        return min(count, candidates) * width

    def state_dict(self) -> dict[str, Any]:
        forest = _through_a_file(self.forest.save)
        return {"width": self.width, "forest": forest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.width = state["width"]
        _from_a_file(state["forest"], self._load)

    def _load(self, path: str) -> None:
        """Maps the file into memory, where it stays when its name is gone."""
        from annoy import AnnoyIndex

        self.forest = AnnoyIndex(self.width, "angular")
        self.forest.load(path)

    def empty_copy(self) -> Index:
        return Annoy(self.num_trees, self.search_k, self.threads)

    def __repr__(self) -> str:
        return f"Annoy(num_trees={self.num_trees}, search_k={self.search_k})"


class IVF(Index):
    """Inverted lists around centroids, exact within a list (faiss): changed vectors move from list to list.

    Args:
        num_lists: centroids; 4 sqrt(n), as faiss recommends, unless given.
        nprobe: how many lists a query looks through; a number, or {from this step on: number}.
        retrain: a successor keeps the centroids, except every so many times.
    """

    library_attributes = ("lists", "_searcher", "_resources")

    def __init__(self, num_lists: int | None = None, nprobe: Schedule = 16, retrain: int = 10):
        if num_lists is not None and num_lists < 1:
            raise ValueError(f"num_lists={num_lists}: at least one list is needed; null for 4 sqrt(classes)")
        check_schedule("nprobe", nprobe, 1)
        if retrain < 1:
            raise ValueError(f"retrain={retrain}: must be at least 1, which finds new centroids every time")
        _faiss()
        self.num_lists, self.nprobe, self.retrain = num_lists, nprobe, retrain
        self.refreshes = 0  # times since the centroids were found
        self.lists: Any = None
        self._searcher: Any = None  # the lists, or their copy on a GPU

    def __len__(self) -> int:
        return 0 if self.lists is None else int(self.lists.ntotal)

    def build(
        self, vectors: Vectors, *, seed: int = 0, step: int = 0, search_scale: float = 1.0, background: bool = False
    ) -> None:
        faiss = _faiss_one_thread() if background else _faiss()
        count, sample = len(vectors), vectors.slice(0, 1)
        num_lists = min(self.num_lists or max(1, round(4 * count**0.5)), count)
        width = sample.shape[1]
        self.lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_lists, faiss.METRIC_INNER_PRODUCT)
        clustering = self.lists.cp
        clustering.seed, clustering.spherical = seed % (1 << 31), True
        clustering.min_points_per_centroid = 1  # no warnings of small sets
        clustering.max_points_per_centroid = POINTS_PER_CENTROID
        drawn = np.random.default_rng(seed).permutation(count)[: num_lists * POINTS_PER_CENTROID]
        self.lists.train(_host(vectors.gather(torch.from_numpy(np.sort(drawn)))))
        for a, b in stretches(count):
            self.lists.add(_host(vectors.slice(a, b)))
        self.lists.make_direct_map()
        self._serve(step, search_scale, sample.device)

    def query(self, x_nD: Tensor, k: int) -> Tensor:
        found = self._searcher.search(_host(x_nD), min(k, len(self)))[1]
        return _padded(torch.from_numpy(found), k).to(x_nD.device)

    def refresh(self, vectors: Vectors, changed: Tensor) -> None:
        for positions in changed.cpu().split(READ_ROWS):
            self.lists.update_vectors(positions.numpy(), _host(vectors.gather(positions)))

    def rebuilt(self, vectors: Vectors, changed: Tensor, **options: Any) -> Index:
        if self.refreshes + 1 >= self.retrain:
            return super().rebuilt(vectors, changed, **options)
        index = self.empty_copy()
        index.lists = (_faiss_one_thread() if options["background"] else _faiss()).clone_index(self.lists)
        index.refresh(vectors, changed)
        index.refreshes = self.refreshes + 1
        index._serve(options["step"], options["search_scale"], vectors.slice(0, 1).device)
        return index

    def bytes_per_vector(self, width: int) -> float:
        return 4.0 * width + 8 + 8  # a vector, its number, and where it lies

    def multiply_adds(self, count: int, width: int, k: int) -> float:
        lists = self.num_lists or min(count, round(4 * count**0.5))
        return (lists + min(1.0, value_at(self.nprobe, 0) / lists) * count) * width

    def state_dict(self) -> dict[str, Any]:
        lists = _through_a_file(lambda path: _faiss().write_index(self.lists, path))
        return {"renewed": self.refreshes, "nprobe": self.lists.nprobe, "lists": lists}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lists = _from_a_file(state["lists"], _faiss().read_index)
        self.lists.make_direct_map()
        self.refreshes, self.lists.nprobe = state["renewed"], state["nprobe"]
        self._searcher = self.lists

    def _serve(self, step: int, search_scale: float, device: torch.device) -> None:
        faiss = _faiss()
        self.lists.nprobe = min(self.lists.nlist, max(1, round(search_scale * value_at(self.nprobe, step))))
        self._searcher = self.lists
        if device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
            self._resources = faiss.StandardGpuResources()
            self._searcher = faiss.index_cpu_to_gpu(self._resources, device.index or 0, self.lists)

    def empty_copy(self) -> "IVF":
        return IVF(self.num_lists, self.nprobe, self.retrain)

    def __repr__(self) -> str:
        return f"IVF(num_lists={self.num_lists}, nprobe={self.nprobe}, retrain={self.retrain})"


def _through_a_file(save: Callable[[str], object]) -> Tensor:
    """What a library writes, as bytes (n,): mapped, so that there is no second copy in memory."""
    with _nameless() as file:
        save(_path(file))
        return torch.from_numpy(np.memmap(file, np.uint8, mode="c"))


def _from_a_file(written: Tensor, load: Callable[[str], Any]) -> Any:
    """What a library reads of such bytes."""
    with _nameless() as file:
        written.numpy().tofile(file)
        file.seek(0)
        return load(_path(file))


def _nameless() -> IO[bytes]:
    """A temporary file without a name. The system removes it with the last process that has it open or mapped."""
    return tempfile.TemporaryFile(prefix="headcount-", buffering=0)


def _path(file: IO[bytes]) -> str:
    """Return a path by which libraries, and programs that inherit the descriptor, open the file."""
    return f"/dev/fd/{file.fileno()}"


def _write(file: IO[bytes], vectors: Vectors, width: int) -> None:
    """Write vectors as .npy. Through a mapping, a full disk would end the process without a word."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(vectors), width)}
    np.lib.format.write_array_header_1_0(file, header)
    for a, b in stretches(len(vectors)):
        _host(vectors.slice(a, b)).tofile(file)
    file.seek(0)


class _Matrix:
    """`Rows` of a matrix, for `streamed_topk`."""

    def __init__(self, rows_CD: Tensor):
        self.rows_CD = rows_CD

    def __len__(self) -> int:
        return len(self.rows_CD)

    def slice(self, a: int, b: int) -> Tensor:
        return self.rows_CD[a:b]


def _padded(positions: Tensor, k: int) -> Tensor:
    return torch.nn.functional.pad(positions, (0, k - positions.shape[1]), value=-1)


def _host(vectors: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = vectors.detach().float().cpu().contiguous().numpy()
    return array


def _matrix(vectors: Vectors) -> NDArray[np.float32]:
    return np.concatenate([_host(vectors.slice(a, b)) for a, b in stretches(len(vectors))])


@lru_cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="nearest")


def _faiss_one_thread() -> Any:
    """For a thread in the background: of OpenMP's settings each thread has its own."""
    faiss = _faiss()
    faiss.omp_set_num_threads(1)
    return faiss


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "index=ivf: needs faiss, of the extra `ivf`: pip install -e '.[ivf]', or pip install faiss-cpu"
        ) from None
    return faiss
