"""FeatureQueue: the two latest features of each class of a pool, and the change that a gallery would make to them."""

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ..core import counter_rng
from .class_pool import ClassPool, Plan
from .rows import PoolRows


class FeatureQueue:
    """Two rows of features for each slot of a pool.

    Args:
        pool: the classes of the slots; `commit` of a change updates it too.
        embedding_size: D.
        dtype: dtype of the stored features.
        device: device that stores them.
        random_seed: fill the slots with random directions of this seed, which act as negatives until a class takes the
            slot. None leaves slots without a class out of the views.

    Attributes:
        rows: (2, capacity, D) features.
        next_row: (capacity,) the row that the next feature of a slot's class replaces.
        checksum: checksum of all changes so far; equal on all processes.
    """

    def __init__(
        self,
        pool: ClassPool,
        embedding_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        random_seed: int | None = None,
    ):
        self.pool, self.mask_unfilled = pool, random_seed is None
        # A plain tensor, as class centers are: DDP would broadcast all of a buffer at every step.
        shape = (2, pool.capacity, embedding_size)
        with torch.inference_mode(False):  # training could not replace features made in inference mode
            self.rows = torch.zeros(shape, dtype=dtype, device=device)
            if random_seed is not None:
                generator = counter_rng.generator("queue", random_seed)
                self.rows.copy_(normalize(torch.rand(shape, dtype=torch.float32, generator=generator), dim=2))
        self.next_row = np.zeros(pool.capacity, dtype=np.int64)
        self.checksum = 0

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.next_row.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return pool, rows, next rows and checksum as tensors and numbers, which `torch.load` reads without pickle."""
        pool = self.pool.state_dict()
        return {
            "pool": {**pool, **{name: torch.from_numpy(pool[name]) for name in ("slots", "classes")}},
            "queue": self.rows.cpu(),
            "next_row": torch.from_numpy(self.next_row),
            "checksum": self.checksum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pool = state["pool"]
        arrays = {name: np.array(torch.as_tensor(pool[name]).numpy()) for name in ("slots", "classes")}
        self.pool.load_state_dict({**pool, **arrays})
        self.rows.copy_(state["queue"])
        self.next_row = np.array(torch.as_tensor(state["next_row"]).numpy())
        self.checksum = state["checksum"]


class QueueChange:
    """The change that a gallery makes to a queue, for the loss to read and for `commit` to carry out.

    A class new to the pool writes row 0. A class already in the pool writes the row after its latest one, in turn. The
    images of one class take turns, so that the last two remain.

    Args:
        queue: the queue; it does not change before `commit`.
        plan: plan for the gallery's classes.
        features: (M, D) features of the gallery.
    """

    def __init__(self, queue: FeatureQueue, plan: Plan, features: Tensor):
        self.queue, self.plan, self.features = queue, plan, features
        self.num_rows = queue.pool.used + len(plan.entered) - len(plan.evicted)
        self.slots, first, group, counts = np.unique(
            plan.slots, return_index=True, return_inverse=True, return_counts=True
        )
        was_in_pool = plan.hit[first]
        start = np.where(was_in_pool, queue.next_row[self.slots], 0)
        self.next_row = (start + counts) % 2
        self.hit = was_in_pool | (counts > 1)  # slots whose second row belongs to the class
        order = np.argsort(group, kind="stable")
        turn = np.empty(len(group), dtype=np.int64)
        turn[order] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
        row = (start[group] + turn) % 2
        # Position of the image whose feature remains in each row of each slot; -1 for none. Later images come last.
        self.writer = np.full((2, len(self.slots)), -1, dtype=np.int64)
        for later in (2, 1):
            chosen = np.flatnonzero(turn == counts[group] - later)
            self.writer[row[chosen], group[chosen]] = chosen

    def views(self) -> list[PoolRows]:
        """Return the pool twice: row 0 of all classes, and row 1 of the classes hit in this pass, row 0 of others."""
        rows = self.queue.rows
        count = self.num_rows if self.queue.mask_unfilled else self.queue.pool.capacity
        zeroth = PoolRows(rows[0], count, *self._written(0))
        row = rows[1][self._index(self.slots)].float()
        writer = np.where(self.hit, self.writer[1], self.writer[0])
        fresh = np.flatnonzero(writer >= 0)
        row[self._index(fresh)] = self.features[self._index(writer[fresh])]
        return [zeroth, PoolRows(rows[0], count, self.slots, row)]

    def commit(self) -> None:
        """Write the features, and carry the plan out."""
        queue = self.queue
        for row in (0, 1):
            slots, features = self._written(row)
            queue.rows[row][self._index(slots)] = features.to(queue.rows.dtype)
        queue.next_row[self.slots] = self.next_row
        queue.pool.commit(self.plan)
        queue.checksum = zlib.crc32(self.plan.slots.tobytes() + self.plan.evicted.tobytes(), queue.checksum)

    def _written(self, row: int) -> tuple[NDArray[np.int64], Tensor]:
        """Return the slots whose `row` is written, and the features."""
        fresh = self.writer[row] >= 0
        return self.slots[fresh], self.features[self._index(self.writer[row][fresh])]

    def _index(self, positions: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(positions).to(self.features.device)
