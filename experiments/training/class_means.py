"""What stands for a class where it has no center: the mean embedding of some of its images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.records import DataSet, RecordSet
from heads.group.sharding import Shard
from heads.objectives.rows import MIN_NORM

from ..models.model import Model

BLOCK = 2**16  # records at a time


def class_means(
    model: Model, data: DataSet, wanted: NDArray[np.bool_], shard: Shard, limit: int, shown: str
) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Embeds up to `limit` training images of each wanted class of this process's shard, not augmented.

    Args:
        wanted: (C,)
        shown: what a progress bar calls the work.

    Returns:
        Rows of the shard that are wanted (n,), their means (n, D) of unit length, or zero for a class without an
        image, and how many images there were (n,).
    """
    chosen = first_images(data.train, wanted, shard, limit)
    own = np.flatnonzero(wanted[shard.start : shard.stop])
    device = model.processes.device
    sums = torch.zeros(len(own), model.embedding_size, device=device)
    counts = torch.zeros(len(own), device=device)
    blocks = [chosen[a : a + BLOCK] for a in range(0, len(chosen), BLOCK)]
    for block in model.shown(blocks, f"Embedding images of {shown}"):
        embeddings = model.embed(data.train.source, data.prepare, block)
        classes = np.asarray(data.train.labels[block], dtype=np.int64) - shard.start
        places = torch.from_numpy(np.searchsorted(own, classes)).to(device)
        sums.index_add_(0, places, normalize(embeddings).to(device))
        counts.index_add_(0, places, torch.ones(len(places), device=device))
    model.processes.any(False)  # those with more images take longer
    return own, sums.div_(sums.norm(dim=1, keepdim=True).clamp_min_(MIN_NORM)), counts


def first_images(records: RecordSet, wanted: NDArray[np.bool_], shard: Shard, limit: int) -> NDArray[np.int64]:
    """Up to `limit` records of each wanted class of the shard."""
    taken = np.zeros(shard.size, dtype=np.int64)
    found = []
    for start in range(0, len(records), BLOCK):
        indices = np.arange(start, min(start + BLOCK, len(records)))
        labels = np.asarray(records.labels[indices])
        inside = (labels >= shard.start) & (labels < shard.stop)
        inside[inside] = wanted[labels[inside]]
        indices, classes = indices[inside], labels[inside] - shard.start
        order = np.argsort(classes, kind="stable")
        _, begins, counts = np.unique(classes[order], return_index=True, return_counts=True)
        earlier = np.empty(len(classes), dtype=np.int64)  # records of the same class before it in this block
        earlier[order] = np.arange(len(classes)) - np.repeat(begins, counts)
        found.append(indices[taken[classes] + earlier < limit])
        taken += np.bincount(classes, minlength=shard.size)
    return np.concatenate(found)
