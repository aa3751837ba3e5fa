"""Blocks: the rows of a class, and how their cosines become those of the loss.

A class has one row, or a block of adjacent rows. Everything that is computed from products of rows and embeddings has
one line a row; logits, margins and positives have one line a class.

Legend: N embeddings, S samples of the loss, D columns, p pairs of a sample and a class, k classes of a chunk,
l = k x size their rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """One row for each class: its cosine is that of the class."""

    size: int = 1  # rows of a class

    def rows(self, a: int, b: int) -> slice:
        """Return the rows of classes a to b."""
        return slice(a * self.size, b * self.size)

    def combined(self, cos_lN: Tensor) -> Tensor:
        """Return the cosines of the classes with the samples (k, S)."""
        return cos_lN

    def spread(self, gradient_kS: Tensor, cos_lN: Tensor) -> Tensor:
        """Return the gradient by the cosines of the rows (l, N), from that by the cosines of the classes."""
        return gradient_kS

    def of_pairs(self, cos_pR: Tensor, sample_p: Tensor, num_embeddings: int) -> Tensor:
        """Return the cosine of each pair (p,), from those of the rows of its class (p, size)."""
        return cos_pR[:, 0]

    def embedding(self, sample_p: Tensor, num_embeddings: int) -> Tensor:
        """Return the number of the embedding of each sample."""
        return sample_p

    def of_embeddings(self, values_S: Tensor, num_embeddings: int) -> Tensor:
        """Return the sum over the samples of each embedding (N,)."""
        return values_S


class NearestRow(Block):
    """Several rows for each class: the highest cosine is that of the class, and only its row has a gradient.

    Source: Deng et al., "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces", ECCV 2020.
    """

    def combined(self, cos_lN: Tensor) -> Tensor:
        return self._by_class(cos_lN).amax(1)

    def spread(self, gradient_kS: Tensor, cos_lN: Tensor) -> Tensor:
        cos_kRN = self._by_class(cos_lN)
        nearest_k1N = cos_kRN.max(dim=1, keepdim=True).indices  # of equal cosines, one
        return torch.zeros_like(cos_kRN).scatter_(1, nearest_k1N, gradient_kS[:, None]).flatten(0, 1)

    def of_pairs(self, cos_pR: Tensor, sample_p: Tensor, num_embeddings: int) -> Tensor:
        return cos_pR.amax(1)

    def _by_class(self, cos_lN: Tensor) -> Tensor:
        return cos_lN.view(-1, self.size, cos_lN.shape[1])


class SeparateRows(Block):
    """Several rows for each class, each with a loss of its own: embedding n with row r is sample r x N + n."""

    def combined(self, cos_lN: Tensor) -> Tensor:
        return cos_lN.view(-1, self.size * cos_lN.shape[1])

    def spread(self, gradient_kS: Tensor, cos_lN: Tensor) -> Tensor:
        return gradient_kS.view_as(cos_lN)

    def of_pairs(self, cos_pR: Tensor, sample_p: Tensor, num_embeddings: int) -> Tensor:
        return cos_pR.gather(1, (sample_p // num_embeddings)[:, None])[:, 0]

    def embedding(self, sample_p: Tensor, num_embeddings: int) -> Tensor:
        return sample_p % num_embeddings

    def of_embeddings(self, values_S: Tensor, num_embeddings: int) -> Tensor:
        return values_S.view(self.size, num_embeddings).sum(0)
