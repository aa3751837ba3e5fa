"""Exact search by matrix product."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..objectives.rows import DenseRows
from ..objectives.softmax import chunks
from ..objectives.topk import streamed_topk
from .index import Index
from .vectors import READ_ROWS, Vectors, padded


@dataclass(eq=False)
class Exact(Index):
    """Exact nearest vectors, by a matrix product with a copy of all vectors on their device.

    It is the reference of the approximate indexes, and has no options.

    Examples:
        >>> head = HashingForest(num_classes=1000, embedding_size=16, num_active=100, index=Exact())
    """

    def __post_init__(self) -> None:
        self.rows_CD = torch.empty(0, 0)

    def __len__(self) -> int:
        return len(self.rows_CD)

    def build(
        self, vectors: Vectors, *, seed: int = 0, step: int = 0, search_scale: float = 1.0, background: bool = False
    ) -> None:
        for a, b in chunks(len(vectors), READ_ROWS):
            vectors_kD = vectors.slice(a, b)
            if a == 0:
                self.rows_CD = vectors_kD.new_empty(len(vectors), vectors_kD.shape[1])
            self.rows_CD[a:b] = vectors_kD

    def query(self, x_nD: Tensor, k: int) -> Tensor:
        positions = streamed_topk(x_nD.to(self.rows_CD), DenseRows(self.rows_CD), k, normalize=False)[1]
        return padded(positions, k).to(x_nD.device)

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
