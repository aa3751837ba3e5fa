"""Templates: pooling the embeddings of their images, the cosines of pairs, and open-set search in a gallery."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.formats.templates import Ids

from . import format_rate
from .search import best_mate_ranks

PROBES = 1024  # probes in a matrix product
PAIRS = 2**16  # pairs whose cosines are computed together


def pool_templates(embeddings: Tensor, template_n: Ids, medium_n: Ids) -> Tensor:
    """Return unit templates (T, D) sorted by id: the sum over media of the mean over a medium's images.

    Args:
        embeddings: embeddings of the images, (n, D).
        template_n: id of the template of each image, (n,).
        medium_n: id of the medium of each image, (n,).
    """
    templates, place_n = np.unique(template_n, return_inverse=True)
    media, medium_of_n, counts = np.unique(
        np.stack([place_n, medium_n]), axis=1, return_inverse=True, return_counts=True
    )
    means = embeddings.new_zeros(media.shape[1], embeddings.shape[1], dtype=torch.float64)
    means.index_add_(0, torch.from_numpy(medium_of_n.ravel()), embeddings.double())
    means /= torch.from_numpy(counts)[:, None]
    sums = means.new_zeros(len(templates), embeddings.shape[1])
    sums.index_add_(0, torch.from_numpy(media[0].astype(np.int64)), means)
    return normalize(sums)


def pair_cosines(templates_TD: Tensor, first: Ids, second: Ids) -> NDArray[np.float64]:
    """Return the cosines of pairs of templates, (n,)."""
    cosines = []
    for start in range(0, len(first), PAIRS):
        a, b = (torch.from_numpy(side[start : start + PAIRS]) for side in (first, second))
        cosines.append((templates_TD[a] * templates_TD[b]).sum(1).numpy())
    return np.concatenate(cosines)


class GallerySearch:
    """Search of probes in one gallery of unit templates. All arguments but subjects are indices of templates.

    Args:
        templates_TD: unit templates.
        template_G: templates of the gallery.
        subject_G: their subjects, each once.
        enrolled_P: probes whose subject is in the gallery.
        subject_P: their subjects.
        stranger_S: probes whose subject is not in the gallery.

    Attributes:
        rank: rank of the mate of each enrolled probe; equal scores of others come first.
        score: score of that mate.
        stranger: highest score of each stranger.
    """

    def __init__(
        self, templates_TD: Tensor, template_G: Ids, subject_G: Ids, enrolled_P: Ids, subject_P: Ids, stranger_S: Ids
    ):
        gallery = templates_TD[torch.from_numpy(template_G)]
        order = np.argsort(subject_G)
        mate = torch.from_numpy(order[np.searchsorted(subject_G[order], subject_P)])
        ranks, scores_of_mates = [], []
        for start in range(0, len(enrolled_P), PROBES):
            block = slice(start, start + PROBES)
            scores = templates_TD[torch.from_numpy(enrolled_P[block])] @ gallery.T
            is_mate = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, mate[block, None], True)
            ranks.append(best_mate_ranks(scores, is_mate))
            scores_of_mates.append(scores.gather(1, mate[block, None])[:, 0])
        self.rank, self.score = torch.cat(ranks).numpy(), torch.cat(scores_of_mates).numpy()
        self.stranger = np.concatenate([
            (templates_TD[torch.from_numpy(stranger_S[start : start + PROBES])] @ gallery.T).amax(1).numpy()
            for start in range(0, len(stranger_S), PROBES)
        ])  # fmt: skip

    def metrics(
        self,
        fpir: Sequence[float],
        ranks: Sequence[int],
        enrolled_weights: NDArray[np.float64],
        stranger_weights: NDArray[np.float64],
    ) -> dict[str, float]:
        """Return tpir_at_fpir_... and rank-k. All are NaN if the weights leave no enrolled probe or no stranger.

        TPIR is the share of enrolled probes that find their mate at rank 1, with a score above the lowest threshold
        at which at most the share `fpir` of the strangers is identified as some person.
        """
        if not enrolled_weights.any() or not stranger_weights.any():
            names = [*(f"tpir_at_fpir_{format_rate(rate)}" for rate in fpir), *(f"rank{k}" for k in ranks)]
            return dict.fromkeys(names, np.nan)
        order = np.argsort(-self.stranger, kind="stable")
        descending, share = self.stranger[order], np.cumsum(stranger_weights[order]) / stranger_weights.sum()
        values, total = {}, enrolled_weights.sum()
        for rate in fpir:
            threshold = descending[share > rate][0]  # the score of the first stranger that must be refused
            hits = (self.score > threshold) & (self.rank == 1)
            values[f"tpir_at_fpir_{format_rate(rate)}"] = float(enrolled_weights @ hits / total)
        for k in ranks:
            values[f"rank{k}"] = float(enrolled_weights @ (self.rank <= k) / total)
        return values
