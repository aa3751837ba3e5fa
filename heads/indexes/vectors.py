"""The vectors that an index is built from."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ..objectives.rows import MIN_NORM, RowSequence
from ..objectives.softmax import chunks
from ..rows.class_rows import ClassRows

READ_ROWS = 8192  # rows that are read at a time into a library's memory


class Vectors(RowSequence, Protocol):
    """The vectors that an index is built from: unit length, float32, on any device."""

    def gather(self, positions: Tensor) -> Tensor:
        """Return the vectors at positions (k,) as (k, D)."""
        ...


class TensorVectors:
    """The rows of a tensor (n, D), scaled to unit length."""

    def __init__(self, vectors: Tensor):
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def slice(self, a: int, b: int) -> Tensor:
        return normalize(self.vectors[a:b].float(), eps=MIN_NORM)

    def gather(self, positions: Tensor) -> Tensor:
        return normalize(self.vectors[positions].float(), eps=MIN_NORM)


class CenterVectors:
    """The rows of a shard, prepared so that the highest cosine is the highest logit.

    Args:
        centers: the class centers, which are read when needed.
        radius: for a margin that does not normalize, at least the length of the longest row. One more column brings
            all rows to this length, so that the order by cosine is that by inner product (Bachrach et al., RecSys
            2014). 0 adds no column.
        columns: number of the first columns that are compared; None for all.
    """

    def __init__(self, centers: ClassRows, radius: float = 0.0, columns: int | None = None):
        self.centers, self.radius = centers, radius
        self.columns = centers.width if columns is None else columns

    def __len__(self) -> int:
        return self.centers.shard.size

    def slice(self, a: int, b: int) -> Tensor:
        return self._prepared(self.centers.read(slice(a, b)).float())

    def gather(self, positions: Tensor) -> Tensor:
        return self._prepared(self.centers.read(positions.to(self.centers.like.device)).float())

    def longest(self) -> float:
        """Return the length of the longest row."""
        parts = chunks(len(self), READ_ROWS)
        return max(float(self.centers.read(slice(a, b))[:, : self.columns].norm(dim=1).max()) for a, b in parts)

    def _prepared(self, rows_kD: Tensor) -> Tensor:
        rows_kD = rows_kD[:, : self.columns]
        if self.radius:
            missing = (self.radius**2 - rows_kD.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
            rows_kD = torch.cat([rows_kD, missing], dim=1)
        return normalize(rows_kD, eps=MIN_NORM)


def to_host(vectors: Tensor) -> NDArray[np.float32]:
    """Return vectors as a contiguous float32 array in host memory."""
    array: NDArray[np.float32] = vectors.detach().float().cpu().contiguous().numpy()
    return array


def padded(positions: Tensor, k: int) -> Tensor:
    """Pad positions (n, m) with -1 to (n, k)."""
    return torch.nn.functional.pad(positions, (0, k - positions.shape[1]), value=-1)
