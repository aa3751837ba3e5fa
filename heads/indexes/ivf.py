"""Approximate search by inverted lists around centroids (faiss)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.options import documented, option
from ..core.schedule import Schedule, check_schedule, value_at, values_of
from ..objectives.softmax import chunks
from .files import loaded_from, saved_bytes
from .index import Index
from .vectors import READ_ROWS, Vectors, padded, to_host

POINTS_PER_CENTROID = 64  # vectors per centroid that k-means uses


@documented
@dataclass(eq=False)
class IVF(Index):
    """Inverted lists around centroids, with exact search within a list (faiss, IndexIVFFlat).

    See Johnson et al., "Billion-scale similarity search with GPUs", 2017, and github.com/facebookresearch/faiss. It
    finds approximate neighbours. A refresh moves changed vectors from list to list; once in
    `retrain` refreshes, k-means computes new centroids.

    Raises:
        TypeError: an unknown option.
        ValueError: an option out of range, or faiss is not installed.

    Examples:
        >>> head = HashingForest(num_classes=1000, embedding_size=16, num_active=100, index=IVF(nprobe=8))
    """

    library_attributes = ("lists", "_searcher", "_resources")

    num_lists: int | None = option(None, "Centroids, one list each. None: 4 sqrt(classes), as faiss recommends.")
    nprobe: Schedule = option(
        16, "Lists that a query searches. A number, or {step: number} to change it from each step on."
    )
    retrain: int = option(10, "Compute new centroids once in this many refreshes; the other refreshes keep them.")

    def __post_init__(self) -> None:
        if self.num_lists is not None and self.num_lists < 1:
            raise ValueError(f"num_lists={self.num_lists} must be at least 1; null makes 4 sqrt(classes) lists")
        check_schedule("nprobe", self.nprobe, 1)
        if self.retrain < 1:
            raise ValueError(f"retrain={self.retrain} must be at least 1, which computes new centroids every time")
        _faiss()
        self.refreshes = 0  # refreshes since the centroids were computed
        self.lists: Any = None
        self._searcher: Any = None  # the lists, or their copy on a GPU

    def __len__(self) -> int:
        return 0 if self.lists is None else int(self.lists.ntotal)

    def build(
        self, vectors: Vectors, *, seed: int = 0, step: int = 0, search_scale: float = 1.0, background: bool = False
    ) -> None:
        faiss = _faiss_one_thread() if background else _faiss()
        count, example = len(vectors), vectors.slice(0, 1)
        num_lists = min(self.num_lists or max(1, round(4 * count**0.5)), count)
        width = example.shape[1]
        self.lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_lists, faiss.METRIC_INNER_PRODUCT)
        clustering = self.lists.cp
        clustering.seed, clustering.spherical = seed % (1 << 31), True
        clustering.min_points_per_centroid = 1  # no warnings about small sets
        clustering.max_points_per_centroid = POINTS_PER_CENTROID
        sampled = np.random.default_rng(seed).permutation(count)[: num_lists * POINTS_PER_CENTROID]
        self.lists.train(to_host(vectors.gather(torch.from_numpy(np.sort(sampled)))))
        for a, b in chunks(count, READ_ROWS):
            self.lists.add(to_host(vectors.slice(a, b)))
        self.lists.make_direct_map()
        self._serve(step, search_scale, example.device)

    def query(self, x_nD: Tensor, k: int) -> Tensor:
        neighbours = self._searcher.search(to_host(x_nD), min(k, len(self)))[1]
        return padded(torch.from_numpy(neighbours), k).to(x_nD.device)

    def refresh(self, vectors: Vectors, changed: Tensor) -> None:
        for positions in changed.cpu().split(READ_ROWS):
            self.lists.update_vectors(positions.numpy(), to_host(vectors.gather(positions)))

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
        return 4.0 * width + 8 + 8  # a vector, its number and its place in the lists

    def multiply_adds(self, count: int, width: int, k: int) -> float:
        lists = self.num_lists or min(count, round(4 * count**0.5))
        return (lists + min(1.0, max(values_of(self.nprobe)) / lists) * count) * width

    def state_dict(self) -> dict[str, Any]:
        lists = saved_bytes(lambda path: _faiss().write_index(self.lists, path))
        return {"renewed": self.refreshes, "nprobe": self.lists.nprobe, "lists": lists}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lists = loaded_from(state["lists"], _faiss().read_index)
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


def _faiss_one_thread() -> Any:
    """Return faiss for a background thread. The OpenMP settings of the other threads do not change."""
    faiss = _faiss()
    faiss.omp_set_num_threads(1)
    return faiss


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "index=ivf needs faiss, which the extra `ivf` installs: pip install -e '.[ivf]', or pip install faiss-cpu"
        ) from None
    return faiss
